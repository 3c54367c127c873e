#include "common/transport/grpc_weights_service.h"

#include <sys/resource.h>

#include <algorithm>
#include <list>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/mutex.h"
#include "common/service/grpc_status.h"
#include "common/status.h"
#include "proto/weights.grpc.pb.h"

namespace tandem {

namespace {

using WeightsReactor = grpc::ServerWriteReactor<grpc::ByteBuffer>;

constexpr int kSendingNice = 5;                          // beside others' 0
constexpr std::chrono::milliseconds kBetweenLooks{250};  // for transfers that take too long

}  // namespace

class GrpcWeightsService::Service
    : public v1::ExpertWeights::WithRawCallbackMethod_Fetch<v1::ExpertWeights::Service> {
 public:
  explicit Service(GrpcWeightsServiceOptions options)
      : options_(std::move(options)), thread_([this] { Run(); }) {}
  ~Service() override {
    {
      MutexLock lock(mutex_);
      ending_ = true;
      changed_.NotifyAll();
    }
    thread_.join();
    MutexLock lock(mutex_);
    changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return live_ == 0; });
  }

  WeightsReactor* Fetch(grpc::CallbackServerContext* context,
                        const grpc::ByteBuffer* request) override;
  CounterSnapshot Counters() const {
    MutexLock lock(mutex_);
    return {{"weights_sent_total", sent_},
            {"weights_sent_bytes_total", sent_bytes_},
            {"weights_refused_total", refused_},
            {"weights_transfers_live", static_cast<int64_t>(transfers_.size())}};
  }

 private:
  friend class GrpcWeightsService::Transfer;

  // What is asked for, if it is there.
  absl::StatusOr<PackedBytes> Find(const v1::WeightsLabel& asked) const;
  void Run();
  bool SomebodyIsReady() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::shared_ptr<Transfer> TakeNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndLateOnes() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const GrpcWeightsServiceOptions options_;
  mutable Mutex mutex_;
  CondVar changed_;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  // Those that have not ended; the next turn is that of the first that can be written to.
  std::list<std::shared_ptr<Transfer>> transfers_ ABSL_GUARDED_BY(mutex_);
  int live_ ABSL_GUARDED_BY(mutex_) = 0;  // reactors
  int64_t sent_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t sent_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t refused_ ABSL_GUARDED_BY(mutex_) = 0;
  std::thread thread_;
};

// One call. Owned by the service's list until it ends, and by itself until OnDone. All but
// reactions needs the service's lock.
class GrpcWeightsService::Transfer : public WeightsReactor {
 public:
  Transfer(Service* service, grpc::CallbackServerContext* context)
      : service_(*service), context_(*context) {}

  // Before the reactor is handed to gRPC.
  void Begin(std::shared_ptr<Transfer> self, v1::WeightsLabel label, PackedBytes weights) {
    service_.mutex_.AssertHeld();
    self_ = std::move(self);
    label_ = std::move(label);
    weights_ = std::move(weights);
    state_ = State::kReady;
  }
  void Refuse(std::shared_ptr<Transfer> self, const absl::Status& why) {
    service_.mutex_.AssertHeld();
    self_ = std::move(self);
    End(why);
  }

  bool ready() const {
    service_.mutex_.AssertHeld();
    return state_ == State::kReady;
  }
  absl::Time began() const { return began_; }

  // Between these two it is the sending thread's, which needs no lock to read what is to be sent.
  void Take() {
    service_.mutex_.AssertHeld();
    state_ = State::kTaken;
  }
  void Send(EncodedWeights next) {
    service_.mutex_.AssertHeld();
    offset_ += next.payload_bytes;
    written_bytes_ = next.payload_bytes;
    frame_.Swap(&next.frame);
    state_ = State::kWriting;
    if (cancelled_) return End(absl::CancelledError("nobody waits for the weights"));
    StartWrite(&frame_);
  }
  EncodedWeights Next() const { return EncodeWeights(label_, weights_.memory, offset_); }

  // Whatever it waits for.
  void GiveUp() {
    service_.mutex_.AssertHeld();
    if (state_ == State::kReady) return End(absl::DeadlineExceededError("reads too slowly"));
    if (!std::exchange(cancelled_, true)) context_.TryCancel();
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(service_.mutex_);
    frame_.Clear();
    if (!ok || cancelled_) return End(absl::CancelledError("nobody waits for the weights"));
    service_.sent_bytes_ += written_bytes_;
    if (offset_ == weights_.layout.bytes) {
      ++service_.sent_;
      return End(absl::OkStatus());
    }
    state_ = State::kReady;
    service_.changed_.NotifyAll();
  }
  void OnCancel() override {
    MutexLock lock(service_.mutex_);
    cancelled_ = true;
    if (state_ == State::kReady) End(absl::CancelledError("nobody waits for the weights"));
  }
  void OnDone() override {
    const std::shared_ptr<Transfer> last = std::move(self_);
    MutexLock lock(service_.mutex_);
    --service_.live_;
    service_.changed_.NotifyAll();
  }

 private:
  enum class State : uint8_t { kReady, kTaken, kWriting, kEnded };

  void End(const absl::Status& status) {
    service_.mutex_.AssertHeld();
    if (std::exchange(state_, State::kEnded) == State::kEnded) return;
    weights_ = {};
    std::erase_if(service_.transfers_, [this](const auto& other) { return other.get() == this; });
    Finish(ToGrpc(status));
  }

  Service& service_;
  grpc::CallbackServerContext& context_;
  const absl::Time began_ = absl::Now();
  std::shared_ptr<Transfer> self_;
  v1::WeightsLabel label_;
  PackedBytes weights_;
  int64_t offset_ = 0;
  int64_t written_bytes_ = 0;
  grpc::ByteBuffer frame_;
  State state_ = State::kReady;
  bool cancelled_ = false;
};

WeightsReactor* GrpcWeightsService::Service::Fetch(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* request) {
  auto transfer = std::make_shared<Transfer>(this, context);
  absl::StatusOr<v1::WeightsLabel> label = DecodeWeightsLabel(*request);
  absl::StatusOr<PackedBytes> weights = label.ok() ? Find(*label) : label.status();
  MutexLock lock(mutex_);
  ++live_;
  if (weights.ok() && static_cast<int>(transfers_.size()) >= options_.max_transfers) {
    weights = absl::ResourceExhaustedError(
        absl::StrCat("weights are sent to ", options_.max_transfers, " workers already"));
  }
  if (!weights.ok()) {
    ++refused_;
    transfer->Refuse(transfer, weights.status());
    return transfer.get();
  }
  transfer->Begin(transfer, *std::move(label), *std::move(weights));
  transfers_.push_back(transfer);
  changed_.NotifyAll();
  return transfer.get();
}

absl::StatusOr<PackedBytes> GrpcWeightsService::Service::Find(const v1::WeightsLabel& asked) const {
  const WeightsOrigin origin = options_.origin();
  if (origin.digest.empty()) {
    return absl::UnavailableError("this worker does not know its checkpoint's digest yet");
  }
  const auto layer = static_cast<int>(asked.layer()), expert = static_cast<int>(asked.expert());
  TANDEM_ASSIGN_OR_RETURN(PackedBytes weights, options_.find(layer, expert));
  TANDEM_RETURN_IF_ERROR(
      CheckWeightsLabel(asked, MakeWeightsLabel(origin, layer, expert, weights.layout)));
  return weights;
}

bool GrpcWeightsService::Service::SomebodyIsReady() const {
  return std::any_of(transfers_.begin(), transfers_.end(),
                     [](const auto& transfer) { return transfer->ready(); });
}

std::shared_ptr<GrpcWeightsService::Transfer> GrpcWeightsService::Service::TakeNext() {
  const auto next = std::find_if(transfers_.begin(), transfers_.end(),
                                 [](const auto& transfer) { return transfer->ready(); });
  if (next == transfers_.end()) return nullptr;
  (*next)->Take();
  transfers_.splice(transfers_.end(), transfers_, next);
  return transfers_.back();
}

void GrpcWeightsService::Service::EndLateOnes() {
  const absl::Time begun_before = absl::Now() - options_.transfer_limit;
  const std::list<std::shared_ptr<Transfer>> all = transfers_;  // ending one takes it out
  for (const auto& transfer : all) {
    if (transfer->began() < begun_before) transfer->GiveUp();
  }
}

void GrpcWeightsService::Service::Run() {
  setpriority(PRIO_PROCESS, 0, kSendingNice);  // of this thread
  MutexLock lock(mutex_);
  while (!ending_) {
    if (transfers_.empty()) {
      changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return ending_ || !transfers_.empty();
      });
    } else {
      changed_.WaitFor(lock, kBetweenLooks, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return ending_ || SomebodyIsReady();
      });
    }
    EndLateOnes();
    const std::shared_ptr<Transfer> next = TakeNext();
    if (next == nullptr) continue;
    const absl::Time begin = absl::Now();
    lock.Unlock();
    EncodedWeights frame = next->Next();
    lock.Lock();
    const int64_t bytes = frame.payload_bytes;
    next->Send(std::move(frame));
    if (!options_.pause) continue;
    lock.Unlock();
    const absl::Duration pause = options_.pause(bytes, absl::Now() - begin);
    lock.Lock();
    changed_.WaitFor(lock, absl::ToChronoMicroseconds(pause),
                     [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ending_; });
  }
}

GrpcWeightsService::GrpcWeightsService(GrpcWeightsServiceOptions options)
    : service_(std::make_unique<Service>(std::move(options))) {}
GrpcWeightsService::~GrpcWeightsService() = default;

grpc::Service* GrpcWeightsService::service() { return service_.get(); }
CounterSnapshot GrpcWeightsService::Counters() const { return service_->Counters(); }

}  // namespace tandem
