#include "expert_worker/engine.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <future>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/transport/expert_dispatcher.h"
#include "common/transport/grpc_expert_link.h"
#include "common/transport/grpc_expert_service.h"
#include "kernels/backend.h"
#include "tests/common/transport/waited_dispatch.h"

namespace tandem {
namespace {

constexpr int kLayer = 1;  // the first with routed experts
constexpr int kTopK = 6;

int64_t Counter(const CounterSnapshot& snapshot, const std::string& name) {
  for (const auto& [key, value] : snapshot) {
    if (key == name) return value;
  }
  ADD_FAILURE() << "no counter " << name;
  return -1;
}

std::future<ExpertReply> SendAsync(ExpertLink& link, std::shared_ptr<const ExpertRequest> request) {
  auto promise = std::make_shared<std::promise<ExpertReply>>();
  link.Send(std::move(request),
            [promise](ExpertReply reply) { promise->set_value(std::move(reply)); });
  return promise->get_future();
}
ExpertReply Get(std::future<ExpertReply> future) {
  if (future.wait_for(std::chrono::seconds(60)) != std::future_status::ready) {
    return {absl::InternalError("done was never called"), {}, nullptr};
  }
  return future.get();
}
ExpertReply Send(ExpertLink& link, std::shared_ptr<const ExpertRequest> request) {
  return Get(SendAsync(link, std::move(request)));
}

std::string Bytes(const TensorView& view) {
  return std::string(static_cast<const char*>(view.data), view.bytes());
}

// On tests/golden/tiny: three layers, the first dense, 32 experts.
class ExpertEngineTest : public ::testing::TestWithParam<Dtype> {
 protected:
  void SetUp() override {
    const std::string dir = absl::StrCat(TANDEM_SOURCE_DIR, "/tests/golden/tiny");
    if (!std::filesystem::exists(dir + "/model.safetensors")) {
      GTEST_SKIP() << dir << "/model.safetensors is missing";
    }
    auto backend = kernels::CreateCpuBackend(2);
    if (!backend.ok()) GTEST_SKIP() << backend.status();
    backend_ = *std::move(backend);
    auto checkpoint = Checkpoint::Open(dir);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
    hidden_ = checkpoint_->config().hidden_size;
    num_experts_ = checkpoint_->config().num_experts;
  }

  Placement MakePlacement(int num_workers) const {
    Placement placement;
    placement.version = {1, 1};
    placement.num_layers = checkpoint_->config().num_layers;
    placement.num_experts = num_experts_;
    placement.holders.resize(placement.num_layers * num_experts_);
    for (int w = 1; w <= num_workers; ++w) {
      placement.workers.push_back({static_cast<WorkerId>(w), ""});
    }
    for (int layer = 1; layer < placement.num_layers; ++layer) {
      for (int e = 0; e < num_experts_; ++e) {
        placement.holders[layer * num_experts_ + e] = {static_cast<WorkerId>(1 + e % num_workers)};
      }
    }
    return placement;
  }

  std::unique_ptr<LoadedExperts> MakeExperts() {
    auto experts =
        LoadedExperts::Create(checkpoint_.get(), backend_.get(), DefaultWeightFormat(GetParam()));
    EXPECT_TRUE(experts.ok()) << experts.status();
    return *std::move(experts);
  }

  // An engine with experts of its own.
  struct Engine {
    std::unique_ptr<LoadedExperts> experts;
    std::unique_ptr<ExpertEngine> engine;
    ExpertEngine* operator->() { return engine.get(); }
    ExpertEngine& operator*() { return *engine; }
  };
  Engine MakeEngine(ExpertEngineOptions options = {}, int num_workers = 1, WorkerId self = 1) {
    options.dtype = GetParam();
    Engine made{MakeExperts(), nullptr};
    EXPECT_TRUE(made.experts->Load(MakePlacement(num_workers), self, nullptr).ok());
    made.engine = std::make_unique<ExpertEngine>(backend_.get(), &checkpoint_->config(),
                                                 made.experts.get(), options);
    return made;
  }

  // Combine's sum of one row after the other.
  std::vector<std::byte> Combine(const TensorView& expert_rows, const std::vector<int32_t>& offsets,
                                 const std::vector<float>& weights) {
    const auto put = [&](const void* from, Dtype dtype, int64_t size) {
      buffers_.push_back(*backend_->Allocate(size * DtypeBytes(dtype)));
      const auto tensor = buffers_.back()->Tensor(dtype, {size});
      if (from != nullptr) backend_->Write(from, tensor);
      return tensor;
    };
    const auto rows = static_cast<int64_t>(offsets.size()) - 1;
    const int64_t routes = expert_rows.rows();
    const auto out = put(nullptr, GetParam(), rows * hidden_).reshaped({rows, hidden_});
    backend_->Combine(
        {put(expert_rows.data, GetParam(), routes * hidden_).reshaped({routes, hidden_}),
         put(offsets.data(), Dtype::kI32, rows + 1), put(weights.data(), Dtype::kF32, routes),
         out});
    std::vector<std::byte> result(out.bytes());
    backend_->Read(out, result.data())->Wait();
    return result;
  }

  std::shared_ptr<std::vector<std::byte>> RandomRows(int num_rows, std::mt19937_64& random) const {
    auto memory =
        std::make_shared<std::vector<std::byte>>(num_rows * hidden_ * DtypeBytes(GetParam()));
    for (int64_t i = 0; i < num_rows * hidden_; ++i) {
      const float value = std::uniform_real_distribution<float>(-2, 2)(random);
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      bits &= 0xFFFF0000;  // exact in both modes
      if (GetParam() == Dtype::kF32) {
        std::memcpy(memory->data() + i * 4, &bits, 4);
      } else {
        bits >>= 16;
        std::memcpy(memory->data() + i * 2, &bits, 2);
      }
    }
    return memory;
  }

  // Every row takes kTopK experts; combined: 0, 1, or 2 for every other row.
  std::shared_ptr<ExpertRequest> MakeRequest(int num_rows, int combined, uint64_t seed,
                                             int layer = kLayer) const {
    std::mt19937_64 random(seed);
    auto request = std::make_shared<ExpertRequest>();
    request->id = {1, seed, static_cast<uint32_t>(layer), 0, 0};
    auto memory = RandomRows(num_rows, random);
    request->rows = TensorView(memory->data(), GetParam(), {num_rows, hidden_});
    request->rows_owner = memory;
    for (int i = 0; i < num_rows; ++i) {
      request->route_offsets.push_back(i * kTopK);
      request->combined.push_back(combined == 2 ? i % 2 : combined);
      for (int k = 0; k < kTopK; ++k) {
        request->route_experts.push_back(static_cast<int32_t>(random() % num_experts_));
        request->route_weights.push_back(static_cast<float>(random() % 1000) / 4000);
      }
    }
    request->route_offsets.push_back(num_rows * kTopK);
    return request;
  }

  std::unique_ptr<kernels::Backend> backend_;
  std::vector<std::unique_ptr<kernels::Buffer>> buffers_;
  std::unique_ptr<Checkpoint> checkpoint_;
  int64_t hidden_ = 0;
  int num_experts_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Modes, ExpertEngineTest, ::testing::Values(Dtype::kF32, Dtype::kBF16),
                         [](const auto& info) { return std::string(DtypeName(info.param)); });

TEST_P(ExpertEngineTest, MapsOnlyItsOwnExpertsAndSaysHowFarItIs) {
  const auto experts = MakeExperts();
  std::vector<float> shares;
  ASSERT_TRUE(
      experts->Load(MakePlacement(4), 2, [&](float share) { shares.push_back(share); }).ok());
  const int64_t share = 2 * num_experts_ / 4;
  EXPECT_EQ(experts->num_loaded(), share);
  EXPECT_EQ(checkpoint_->mapped_tensors(), 3 * share);
  EXPECT_TRUE(std::is_sorted(shares.begin(), shares.end()));
  EXPECT_EQ(shares.back(), 1.0f);
  // Once more maps nothing, and a bigger share only the rest.
  ASSERT_TRUE(experts->Load(MakePlacement(4), 2, nullptr).ok());
  EXPECT_EQ(checkpoint_->mapped_tensors(), 3 * share);
  ASSERT_TRUE(experts->Load(MakePlacement(1), 1, nullptr).ok());
  EXPECT_EQ(checkpoint_->mapped_tensors(), 3 * 2 * num_experts_);
}

TEST_P(ExpertEngineTest, LetsGoOfWhatNoVersionInUseNames) {
  const auto experts = MakeExperts();
  ExpertEngine engine(backend_.get(), &checkpoint_->config(), experts.get(), {.dtype = GetParam()});
  Placement all = MakePlacement(1), half = MakePlacement(2), again = MakePlacement(1);
  all.version = {1, 1};
  half.version = {1, 2};
  again.version = {1, 3};
  ASSERT_TRUE(experts->Load(all, 1, nullptr).ok());
  const int64_t bytes = experts->bytes();
  EXPECT_GT(bytes, 0);
  auto odd = MakeRequest(3, 1, 7), even = MakeRequest(3, 1, 7);
  for (int32_t& expert : odd->route_experts) expert |= 1;
  for (int32_t& expert : even->route_experts) expert &= ~1;
  const std::string of_odd = Bytes(Send(engine, odd).rows),
                    of_even = Bytes(Send(engine, even).rows);

  ASSERT_TRUE(experts->Load(half, 1, nullptr).ok());
  experts->Retire({1, 1});  // both are in use
  EXPECT_EQ(experts->bytes(), bytes);
  experts->Retire({1, 2});
  EXPECT_EQ(experts->bytes(), bytes / 2);
  EXPECT_EQ(experts->num_loaded(), num_experts_);
  EXPECT_EQ(Counter(engine.Counters(), "expert_bytes"), bytes / 2);
  EXPECT_EQ(Send(engine, odd).status.code(), absl::StatusCode::kNotFound);
  even->placement = {1, 1};
  EXPECT_EQ(Send(engine, even).status.code(), absl::StatusCode::kFailedPrecondition);
  even->placement = {1, 2};
  EXPECT_EQ(Bytes(Send(engine, even).rows), of_even);
  even->placement = {9, 1};  // of a gateway's life that came or went: its experts are there
  EXPECT_EQ(Bytes(Send(engine, even).rows), of_even);

  ASSERT_TRUE(experts->Load(again, 1, nullptr).ok());
  experts->Retire({1, 3});
  EXPECT_EQ(experts->bytes(), bytes);
  EXPECT_EQ(Bytes(Send(engine, odd).rows), of_odd);
}

// Epochs are told apart, not ordered, and a gateway that is started again counts from 1.
TEST_P(ExpertEngineTest, LetsGoOfWhatAnEarlierGatewayGave) {
  for (const uint64_t next_epoch : {2, 9}) {
    const auto experts = MakeExperts();
    Placement all = MakePlacement(1), half = MakePlacement(2);
    all.version = {5, 3};
    half.version = {next_epoch, 1};
    ASSERT_TRUE(experts->Load(all, 1, nullptr).ok());
    experts->Retire(all.version);
    const int64_t bytes = experts->bytes();
    ASSERT_TRUE(experts->Load(half, 1, nullptr).ok());
    EXPECT_EQ(experts->bytes(), bytes);
    experts->Retire(half.version);
    EXPECT_EQ(experts->bytes(), bytes / 2) << "epoch " << next_epoch;
  }
}

TEST_P(ExpertEngineTest, ExpertsComeAndGoWhileOthersAreUsed) {
  auto engine = MakeEngine();
  Placement half = MakePlacement(2), all = MakePlacement(1);
  auto request = MakeRequest(4, 1, 8);
  for (int32_t& expert : request->route_experts) expert &= ~1;  // always loaded
  const std::string expected = Bytes(Send(*engine, request).rows);
  std::atomic<bool> done = false;
  std::thread changes([&] {
    for (uint64_t counter = 2; counter < 40; ++counter) {
      Placement& placement = counter % 2 == 0 ? half : all;
      placement.version = {1, counter};
      EXPECT_TRUE(engine.experts->Load(placement, 1, nullptr).ok());
      engine.experts->Retire(placement.version);
    }
    done = true;
  });
  while (!done) ASSERT_EQ(Bytes(Send(*engine, request).rows), expected);
  changes.join();
}

TEST_P(ExpertEngineTest, RefusesWhatItCannotCompute) {
  auto engine = MakeEngine({}, 2, 1);  // even experts
  const auto code = [&](auto change) {
    auto request = MakeRequest(3, 1, 1);
    for (int32_t& expert : request->route_experts) expert &= ~1;
    change(*request);
    return Send(*engine, request).status.code();
  };
  EXPECT_EQ(code([](ExpertRequest&) {}), absl::StatusCode::kOk);
  EXPECT_EQ(code([](ExpertRequest& r) { r.route_experts[4] = 3; }), absl::StatusCode::kNotFound);
  EXPECT_EQ(code([](ExpertRequest& r) { r.route_experts[4] = -1; }),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code([&](ExpertRequest& r) { r.route_experts[4] = num_experts_; }),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](ExpertRequest& r) { r.id.layer = 0; }), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](ExpertRequest& r) { r.id.layer = 99; }), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](ExpertRequest& r) { r.rows.dtype = Dtype::kF16; }),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](ExpertRequest& r) { r.rows.shape[1] = 8; }),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Counter(engine->Counters(), "requests_live"), 0);

  Placement other = MakePlacement(1);
  other.num_experts = 8;
  EXPECT_EQ(engine.experts->Load(other, 1, nullptr).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(ExpertEngineTest, ComputesTheGatedMlpOfEachRoute) {
  auto engine = MakeEngine();
  const auto request = MakeRequest(2, 0, 5);
  const ExpertReply reply = Send(*engine, request);
  ASSERT_TRUE(reply.status.ok()) << reply.status;
  ASSERT_EQ(reply.rows.rows(), 2 * kTopK);
  const auto load = [&](int expert, const char* projection) {
    return *checkpoint_->Load(
        absl::StrCat("model.layers.", kLayer, ".mlp.experts.", expert, ".", projection, ".weight"),
        DefaultWeightFormat(GetParam()));
  };
  const auto value = [](const TensorView& view, int64_t i) -> double {
    if (view.dtype == Dtype::kF32) {
      float f;
      std::memcpy(&f, static_cast<const char*>(view.data) + i * 4, 4);
      return f;
    }
    uint16_t half;
    std::memcpy(&half, static_cast<const char*>(view.data) + i * 2, 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
  };
  const double tolerance = GetParam() == Dtype::kF32 ? 1e-5 : 3e-2;
  for (int t = 0; t < 2 * kTopK; ++t) {
    const int64_t row = t / kTopK;
    const int expert = request->route_experts[t];
    const OwnedTensor gate = load(expert, "gate_proj"), up = load(expert, "up_proj"),
                      down = load(expert, "down_proj");
    const int64_t intermediate = gate.view.dim(0);
    std::vector<double> h(intermediate);
    for (int64_t n = 0; n < intermediate; ++n) {
      double g = 0, u = 0;
      for (int64_t k = 0; k < hidden_; ++k) {
        const double x = value(request->rows, row * hidden_ + k);
        g += x * value(gate.view, n * hidden_ + k);
        u += x * value(up.view, n * hidden_ + k);
      }
      h[n] = g / (1 + std::exp(-g)) * u;
    }
    std::vector<double> expected(hidden_);
    double scale = 0;
    for (int64_t j = 0; j < hidden_; ++j) {
      for (int64_t n = 0; n < intermediate; ++n) {
        expected[j] += h[n] * value(down.view, j * intermediate + n);
      }
      scale = std::max(scale, std::abs(expected[j]));
    }
    for (int64_t j = 0; j < hidden_; ++j) {
      EXPECT_NEAR(value(reply.rows, t * hidden_ + j), expected[j], tolerance * scale);
    }
  }
}

TEST_P(ExpertEngineTest, CombinedRowsAreTheCombinationOfTheirRoutesRows) {
  auto engine = MakeEngine();
  const auto separate = MakeRequest(5, 0, 6);
  const auto combined = MakeRequest(5, 1, 6);
  const auto mixed = MakeRequest(5, 2, 6);
  const ExpertReply rows = Send(*engine, separate);
  const ExpertReply sums = Send(*engine, combined);
  const ExpertReply both = Send(*engine, mixed);
  ASSERT_TRUE(rows.status.ok() && sums.status.ok() && both.status.ok());
  ASSERT_EQ(rows.rows.rows(), 5 * kTopK);
  ASSERT_EQ(sums.rows.rows(), 5);
  ASSERT_EQ(both.rows.rows(), 3 * kTopK + 2);
  std::vector<std::byte> out = Combine(rows.rows, separate->route_offsets, separate->route_weights);
  EXPECT_EQ(Bytes(sums.rows), Bytes(TensorView(out.data(), GetParam(), {5, hidden_})));
  EXPECT_EQ(Bytes(both.rows.slice_rows(kTopK, 1)), Bytes(sums.rows.slice_rows(1, 1)));
  EXPECT_EQ(Bytes(both.rows.slice_rows(kTopK + 1, kTopK)),
            Bytes(rows.rows.slice_rows(2 * kTopK, kTopK)));
}

TEST_P(ExpertEngineTest, WhatWaitsForALayerIsMergedAndKeepsItsBits) {
  auto engine = MakeEngine();
  std::vector<std::shared_ptr<ExpertRequest>> requests;
  std::vector<std::string> alone;
  for (int i = 0; i < 5; ++i) {
    requests.push_back(MakeRequest(1 + 3 * i, i % 3, 10 + i, i == 2 ? 2 : kLayer));
    const ExpertReply reply = Send(*engine, requests.back());
    ASSERT_TRUE(reply.status.ok()) << reply.status;
    alone.push_back(Bytes(reply.rows));
  }
  EXPECT_EQ(Counter(engine->Counters(), "merged_requests_total"), 0);
  // The engine's thread waits in an answer while the others come.
  std::promise<void> entered, release;
  engine->Send(MakeRequest(1, 1, 1), [&](ExpertReply) {
    entered.set_value();
    release.get_future().wait();
  });
  entered.get_future().wait();
  std::vector<std::future<ExpertReply>> replies;
  for (const auto& request : requests) replies.push_back(SendAsync(*engine, request));
  release.set_value();
  for (size_t i = 0; i < replies.size(); ++i) {
    const ExpertReply reply = Get(std::move(replies[i]));
    ASSERT_TRUE(reply.status.ok()) << reply.status;
    EXPECT_EQ(Bytes(reply.rows), alone[i]) << "request " << i;
  }
  EXPECT_EQ(Counter(engine->Counters(), "merged_requests_total"), 4);
  EXPECT_EQ(Counter(engine->Counters(), "requests_total"), 11);
  EXPECT_EQ(Counter(engine->Counters(), "requests_live"), 0);
}

TEST_P(ExpertEngineTest, PartsCallsAndTokensOfEachExpertAreMeasured) {
  ExpertEngineTimes times;
  ExpertEngineOptions options;
  options.times = &times;
  {
    auto engine = MakeEngine(options);
    std::promise<void> entered, release;
    engine->Send(MakeRequest(1, 1, 1), [&](ExpertReply) {
      entered.set_value();
      release.get_future().wait();
    });
    entered.get_future().wait();
    std::vector<std::future<ExpertReply>> replies;
    const auto late = MakeRequest(2, 1, 2);
    late->time_left = absl::ZeroDuration();
    for (const auto& request : {MakeRequest(3, 0, 3), MakeRequest(5, 1, 4), late}) {
      replies.push_back(SendAsync(*engine, request));
    }
    EXPECT_EQ(Counter(engine->Counters(), "requests_waiting"), 3);
    release.set_value();
    for (auto& reply : replies) Get(std::move(reply));
    EXPECT_EQ(Counter(engine->Counters(), "requests_waiting"), 0);
  }
  // The two that were merged take as many experts as they have different ones.
  const auto different = [](std::vector<std::shared_ptr<ExpertRequest>> requests) {
    std::set<int32_t> experts;
    for (const auto& request : requests) {
      experts.insert(request->route_experts.begin(), request->route_experts.end());
    }
    return experts.size();
  };
  const size_t touched =
      different({MakeRequest(1, 1, 1)}) + different({MakeRequest(3, 0, 3), MakeRequest(5, 1, 4)});
  const std::string text = prometheus::TextSerializer().Serialize(times.registry()->Collect());
  for (const std::string& line :
       {std::string("part_queue_seconds_count 4"), std::string("part_seconds_count 4"),
        std::string("call_seconds_count 2"), std::string("call_rows_count 2"),
        std::string("call_rows_sum 9"), absl::StrCat("tokens_per_expert_sum ", 9 * kTopK),
        absl::StrCat("tokens_per_expert_count ", touched)}) {
    EXPECT_THAT(text, ::testing::HasSubstr(absl::StrCat("\ntandem_expert_", line, "\n")));
  }
}

TEST_P(ExpertEngineTest, TwentyThousandRowsMayAllTakeTheSameExperts) {
  auto engine = MakeEngine();
  constexpr int kRows = 20000, kDifferent = 7;
  const auto few = MakeRequest(kDifferent, 2, 12);
  auto many = std::make_shared<ExpertRequest>(*few);
  auto memory = std::make_shared<std::vector<std::byte>>();
  many->route_offsets = {0};
  many->route_experts.clear();
  many->route_weights.clear();
  many->combined.clear();
  const size_t row_bytes = hidden_ * DtypeBytes(GetParam());
  for (int i = 0; i < kRows; ++i) {
    const int row = i % kDifferent;
    const auto* bytes = reinterpret_cast<const std::byte*>(few->rows.row(row));
    memory->insert(memory->end(), bytes, bytes + row_bytes);
    for (int k = 0; k < kTopK; ++k) {
      few->route_experts[row * kTopK + k] = 20 + k;
      many->route_experts.push_back(20 + k);
      many->route_weights.push_back(few->route_weights[row * kTopK + k]);
    }
    many->route_offsets.push_back((i + 1) * kTopK);
    many->combined.push_back(few->combined[row]);
  }
  many->rows = TensorView(memory->data(), GetParam(), {kRows, hidden_});
  many->rows_owner = memory;
  const ExpertReply expected = Send(*engine, few), reply = Send(*engine, many);
  ASSERT_TRUE(expected.status.ok() && reply.status.ok()) << reply.status;
  ASSERT_EQ(reply.rows.rows(), many->num_output_rows());
  int64_t next = 0;
  std::vector<int64_t> first(kDifferent + 1);  // output row of each row of `few`
  for (int row = 0; row < kDifferent; ++row) {
    first[row + 1] = first[row] + (few->combined[row] ? 1 : kTopK);
  }
  for (int i = 0; i < kRows; ++i) {
    const int row = i % kDifferent;
    const int64_t count = first[row + 1] - first[row];
    ASSERT_EQ(std::memcmp(reply.rows.row(next), expected.rows.row(first[row]), count * row_bytes),
              0)
        << i;
    next += count;
  }
}

TEST_P(ExpertEngineTest, WorkWhoseTimeIsUpIsDroppedAndCounted) {
  auto engine = MakeEngine();
  const auto request = MakeRequest(2, 1, 30);
  request->time_left = absl::ZeroDuration();
  EXPECT_EQ(Send(*engine, request).status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Counter(engine->Counters(), "dropped_total"), 1);
  EXPECT_EQ(Counter(engine->Counters(), "rows_total"), 0);
}

TEST_P(ExpertEngineTest, WaitingBytesAreBoundedAndTheEndAnswersAll) {
  ExpertEngineOptions options;
  options.max_waiting_bytes = 10 * hidden_ * static_cast<int64_t>(DtypeBytes(GetParam()));
  auto engine = MakeEngine(options);
  std::promise<void> entered, release;
  engine->Send(MakeRequest(1, 1, 1), [&](ExpertReply) {
    entered.set_value();
    release.get_future().wait();
  });
  entered.get_future().wait();
  std::future<ExpertReply> waiting = SendAsync(*engine, MakeRequest(10, 1, 2));
  EXPECT_EQ(Send(*engine, MakeRequest(1, 1, 3)).status.code(),
            absl::StatusCode::kResourceExhausted);
  release.set_value();
  EXPECT_TRUE(Get(std::move(waiting)).status.ok());
}

// Real experts behind the dispatcher and gRPC: the answer's bits do not depend on the topology.
TEST_P(ExpertEngineTest, OneTwoAndEightWorkersOverGrpcGiveTheSameBits) {
  struct Worker {
    Engine engine;
    std::unique_ptr<GrpcExpertService> service;
    std::unique_ptr<grpc::Server> server;
    ~Worker() { server->Shutdown(std::chrono::system_clock::now()); }
  };
  const auto all = MakeRequest(33, 1, 40);
  const RowCombine combine = [this](const TensorView& expert_rows, const float* weights,
                                    const TensorView& out) {
    const std::vector<std::byte> sum = Combine(expert_rows, {0, kTopK}, {weights, weights + kTopK});
    std::memcpy(out.data, sum.data(), sum.size());
  };
  auto one = MakeEngine();
  const std::string expected = Bytes(Send(*one, all).rows);
  for (const int num_workers : {1, 2, 8}) {
    std::vector<std::unique_ptr<Worker>> workers;
    Placement placement = MakePlacement(num_workers);
    for (int w = 1; w <= num_workers; ++w) {
      auto worker = std::make_unique<Worker>();
      worker->engine = MakeEngine({}, num_workers, w);
      worker->service = std::make_unique<GrpcExpertService>(worker->engine.engine.get());
      grpc::ServerBuilder builder;
      int port = 0;
      builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
      builder.RegisterService(worker->service->service());
      worker->server = builder.BuildAndStart();
      placement.workers[w - 1].address = absl::StrCat("127.0.0.1:", port);
      workers.push_back(std::move(worker));
    }
    ExpertDispatcher dispatcher(1, {}, [](const Placement::Worker& worker) {
      return std::make_shared<GrpcExpertLink>(GrpcPeer{worker.address, nullptr});
    });
    dispatcher.SetPlacement(placement);
    RowBatch batch;
    batch.layer = kLayer;
    batch.rows = all->rows;
    batch.rows_owner = all->rows_owner;
    batch.expert_ids = all->route_experts.data();
    batch.weights = all->route_weights.data();
    batch.top_k = kTopK;
    std::vector<std::byte> out(all->rows.bytes());
    const TensorView view(out.data(), GetParam(), {33, hidden_});
    const absl::Status status = WaitedDispatch(&dispatcher, batch).Wait(combine, view);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(Bytes(view), expected) << num_workers << " workers";
    EXPECT_EQ(Counter(dispatcher.Counters(), "parts_total"), num_workers);
    EXPECT_EQ(Counter(dispatcher.Counters(), "retries_total"), 0);
  }
}

}  // namespace
}  // namespace tandem
