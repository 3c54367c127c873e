#include "gateway/coordinator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "absl/time/clock.h"
#include "common/service/registry_client.h"
#include "common/service/service_host.h"
#include "proto/registry.grpc.pb.h"

namespace tandem {
namespace {

using testing::HasSubstr;

constexpr absl::Duration kLimit = absl::Seconds(20);

// A worker's side of the registry that has done at once what it is told.
class FakeMember {
 public:
  FakeMember(const std::string& registry, v1::WorkerKind kind, const std::string& address) {
    v1::WorkerHello hello;
    hello.set_kind(kind);
    hello.set_address(address);
    hello.set_digest("d");
    hello.set_expert_capacity(1000);
    RegistryClient::Callbacks callbacks;
    callbacks.hello = [hello] { return hello; };
    callbacks.health = [this] {
      std::lock_guard lock(mutex_);
      WorkerHealth health;
      health.ready = version_.counter > 0;
      health.loaded = 1;
      health.placement = version_;
      health.draining = draining_;
      return health;
    };
    callbacks.on_accepted = [](WorkerId, uint64_t) {};
    callbacks.on_load = callbacks.on_use = [this](Placement placement) {
      std::lock_guard lock(mutex_);
      version_ = placement.version;
    };
    callbacks.on_released = [this] {
      std::lock_guard lock(mutex_);
      released_ = true;
      changed_.notify_all();
    };
    callbacks.on_refused = [this](absl::Status status) {
      std::lock_guard lock(mutex_);
      refused_ = std::move(status);
      changed_.notify_all();
    };
    client_ = std::make_unique<RegistryClient>(registry, callbacks);
  }

  absl::Status WaitForRefusal() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, absl::ToChronoNanoseconds(kLimit), [this] { return !refused_.ok(); });
    return refused_;
  }
  void Drain() {
    std::lock_guard lock(mutex_);
    draining_ = true;
  }
  bool WaitForRelease() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, absl::ToChronoNanoseconds(kLimit), [this] { return released_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  PlacementVersion version_;
  bool draining_ = false;
  bool released_ = false;
  absl::Status refused_;
  std::unique_ptr<RegistryClient> client_;  // last: calls back until it is destroyed
};

// Links that do nothing but break when they are told to. Who is dialed at a swallowed address
// waits.
class Links {
 public:
  AttentionDialer Dialer() {
    return [this](const std::string& address, AttentionLink::Observer* observer)
               -> absl::StatusOr<std::unique_ptr<AttentionLink>> {
      std::unique_lock lock(mutex_);
      ++dials_;
      newest_ = observer;
      changed_.notify_all();
      changed_.wait_for(lock, absl::ToChronoNanoseconds(kLimit),
                        [&] { return swallowed_ != address; });
      return std::make_unique<Link>(this);
    };
  }
  void Swallow(const std::string& address) {  // "": none
    std::lock_guard lock(mutex_);
    swallowed_ = address;
    changed_.notify_all();
  }
  bool WaitForDials(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, absl::ToChronoNanoseconds(kLimit),
                             [&] { return dials_ >= count; });
  }
  bool WaitForCloses(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, absl::ToChronoNanoseconds(kLimit),
                             [&] { return closes_ >= count; });
  }
  void BreakNewest() { newest_->OnDown(absl::UnavailableError("the cable was cut")); }

 private:
  class Link : public AttentionLink {
   public:
    explicit Link(Links* owner) : owner_(owner) {}
    ~Link() override {
      std::lock_guard lock(owner_->mutex_);
      ++owner_->closes_;
      owner_->changed_.notify_all();
    }

   private:
    AttentionWorkerInfo info() const override { return {2, 8, 50}; }
    void OpenSequence(SequenceSpec) override {}
    void Run(Step) override {}
    void Cancel(SequenceId) override {}
    void Release(SequenceId) override {}

    Links* const owner_;
  };

  std::mutex mutex_;
  std::condition_variable changed_;
  std::string swallowed_;
  int dials_ = 0;
  int closes_ = 0;
  AttentionLink::Observer* newest_ = nullptr;
};

class CoordinatorTest : public testing::Test {
 protected:
  CoordinatorTest() {
    config_.num_layers = 2;
    config_.num_experts = 4;
    MembershipOptions options;
    options.digest = "d";
    options.epoch = 7;
    coordinator_ = std::make_unique<Coordinator>(&config_, options, &driver_, links_.Dialer(),
                                                 [this](bool serving) {
                                                   std::lock_guard lock(mutex_);
                                                   serving_ = serving;
                                                   changed_.notify_all();
                                                 });
    host_ = *ServiceHost::Start({"127.0.0.1:0", "", false}, {coordinator_->service()}, {});
  }

  bool WaitForServing(bool serving = true) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, absl::ToChronoNanoseconds(kLimit),
                             [&] { return serving_ == serving; });
  }

  template <typename Condition>
  static bool WaitUntil(const Condition& condition) {
    const absl::Time limit = absl::Now() + kLimit;
    while (!condition() && absl::Now() < limit) absl::SleepFor(absl::Milliseconds(1));
    return condition();
  }

  ModelConfig config_;
  Links links_;
  StepDriver driver_{SchedulerPolicy{}};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool serving_ = false;
  std::unique_ptr<Coordinator> coordinator_;
  std::unique_ptr<ServiceHost> host_;  // last: ends the streams before the service goes
};

TEST_F(CoordinatorTest, DialsAnAttentionWorkerAgainWhoseLinkBreaksWhileItIsStillAMember) {
  FakeMember expert(host_->address(), v1::WORKER_KIND_EXPERT, "e:1");
  FakeMember attention(host_->address(), v1::WORKER_KIND_ATTENTION, "a:1");
  ASSERT_TRUE(WaitForServing());
  ASSERT_TRUE(links_.WaitForDials(1));
  links_.BreakNewest();
  EXPECT_TRUE(links_.WaitForDials(2));
}

TEST_F(CoordinatorTest, TakesALostAttentionWorkerFromTheDriverAndGivesItTheNextOne) {
  FakeMember expert(host_->address(), v1::WORKER_KIND_EXPERT, "e:1");
  auto lost = std::make_unique<FakeMember>(host_->address(), v1::WORKER_KIND_ATTENTION, "a:1");
  ASSERT_TRUE(WaitForServing());
  EXPECT_EQ(driver_.num_workers(), 1);
  // Its membership ends; its link knows nothing of it.
  lost.reset();
  EXPECT_TRUE(links_.WaitForCloses(1));
  EXPECT_TRUE(WaitForServing(false));
  EXPECT_EQ(driver_.num_workers(), 0);
  FakeMember next(host_->address(), v1::WORKER_KIND_ATTENTION, "a:2");
  EXPECT_TRUE(WaitForServing());
  EXPECT_TRUE(links_.WaitForDials(2));
}

TEST_F(CoordinatorTest, AnAttentionWorkerThatDoesNotAnswerHoldsUpNobodyElse) {
  links_.Swallow("a:1");
  FakeMember expert(host_->address(), v1::WORKER_KIND_EXPERT, "e:1");
  FakeMember silent(host_->address(), v1::WORKER_KIND_ATTENTION, "a:1");
  ASSERT_TRUE(links_.WaitForDials(1));
  EXPECT_FALSE(coordinator_->Look().serving);
  EXPECT_THAT(coordinator_->Look().detail, HasSubstr("has not answered yet"));
  FakeMember other(host_->address(), v1::WORKER_KIND_ATTENTION, "a:2");
  ASSERT_TRUE(WaitForServing());
  FakeMember second_expert(host_->address(), v1::WORKER_KIND_EXPERT, "e:2");
  EXPECT_TRUE(WaitUntil([this] { return coordinator_->Look().placement.workers.size() == 2; }));
  EXPECT_EQ(driver_.num_workers(), 1);
  links_.Swallow("");
  EXPECT_TRUE(WaitUntil([this] { return driver_.num_workers() == 2; }));
}

TEST_F(CoordinatorTest, AnAttentionWorkerThatLeavesWhileItIsDialedLeavesNothingBehind) {
  links_.Swallow("a:1");
  FakeMember expert(host_->address(), v1::WORKER_KIND_EXPERT, "e:1");
  auto silent = std::make_unique<FakeMember>(host_->address(), v1::WORKER_KIND_ATTENTION, "a:1");
  ASSERT_TRUE(links_.WaitForDials(1));
  silent.reset();
  ASSERT_TRUE(WaitUntil([this] { return coordinator_->Look().members.size() == 1; }));
  links_.Swallow("");
  EXPECT_TRUE(links_.WaitForCloses(1));
  EXPECT_TRUE(WaitUntil([this] { return driver_.num_workers() == 0; }));
}

TEST_F(CoordinatorTest, AnAttentionWorkerThatDrainsWhileItIsDialedMayEnd) {
  links_.Swallow("a:1");
  FakeMember expert(host_->address(), v1::WORKER_KIND_EXPERT, "e:1");
  FakeMember silent(host_->address(), v1::WORKER_KIND_ATTENTION, "a:1");
  ASSERT_TRUE(links_.WaitForDials(1));
  silent.Drain();
  ASSERT_TRUE(WaitUntil([this] {
    for (const auto& [member, state] : coordinator_->Look().members) {
      if (member.closed) return true;
    }
    return false;
  }));
  links_.Swallow("");
  EXPECT_TRUE(silent.WaitForRelease());
  EXPECT_TRUE(links_.WaitForCloses(1));
}

TEST_F(CoordinatorTest, RefusesAWorkerOfNoKnownKind) {
  FakeMember nobody(host_->address(), v1::WORKER_KIND_UNSPECIFIED, "n:1");
  const absl::Status refused = nobody.WaitForRefusal();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("n:1"));
}

TEST_F(CoordinatorTest, CountsWhatIsThereAndWhoWasRefused) {
  const auto counter = [this](const std::string& name) {
    for (const auto& [of, value] : coordinator_->Counters()) {
      if (of == name) return value;
    }
    return int64_t{-1};
  };
  EXPECT_EQ(counter("model_experts"), 8);
  EXPECT_EQ(counter("experts_without_holder"), 8);
  FakeMember first(host_->address(), v1::WORKER_KIND_EXPERT, "e:1");
  FakeMember attention(host_->address(), v1::WORKER_KIND_ATTENTION, "a:1");
  ASSERT_TRUE(WaitForServing());
  EXPECT_EQ(counter("attention_workers"), 1);
  EXPECT_EQ(counter("expert_workers_ready"), 1);
  EXPECT_EQ(counter("experts_without_holder"), 0);
  EXPECT_EQ(counter("experts_with_one_holder"), 8);
  EXPECT_EQ(counter("workers_refused_total"), 0);
  for (int i = 0; i < 2; ++i) {  // the same address counts twice, and is kept once
    FakeMember nobody(host_->address(), v1::WORKER_KIND_UNSPECIFIED, "n:1");
    EXPECT_FALSE(nobody.WaitForRefusal().ok());
  }
  EXPECT_EQ(counter("workers_refused_total"), 2);
  EXPECT_THAT(coordinator_->Look().refused, testing::ElementsAre(HasSubstr("n:1")));
}

}  // namespace
}  // namespace tandem
