#include "common/transport/peer_weights.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/service/grpc_channel.h"
#include "common/service/grpc_status.h"
#include "proto/weights.grpc.pb.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

constexpr absl::Duration kBetweenLooks = absl::Milliseconds(20);

// One call, of which one thing is awaited at a time.
class WeightsCall {
 public:
  WeightsCall(v1::ExpertWeights::Stub& stub, const v1::WeightsLabel& label, absl::Time until) {
    context_.set_deadline(absl::ToChronoTime(until));
    reader_ = stub.PrepareAsyncFetch(&context_, label, &queue_);
  }
  ~WeightsCall() {
    queue_.Shutdown();
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) {
    }
  }
  WeightsCall(const WeightsCall&) = delete;
  WeightsCall& operator=(const WeightsCall&) = delete;

  // Cancelled where it fails. Whatever it says, it is to be ended by Finish.
  absl::Status Receive(const PeerWeightsOptions& options, WeightsReceiver* receiver) {
    reader_->StartCall(this);
    v1::WeightsFrame frame;
    for (bool first = true;; first = false) {
      const absl::StatusOr<bool> more = Await(options);
      if (!more.ok()) return more.status();
      if (!*more) return absl::OkStatus();
      if (!first) {
        if (absl::Status added = receiver->Add(frame); !added.ok()) {
          context_.TryCancel();
          return added;
        }
      }
      reader_->Read(&frame, this);
    }
  }
  absl::Status Finish() {
    grpc::Status status;
    reader_->Finish(&status, this);
    void* tag;
    bool ok;
    queue_.Next(&tag, &ok);  // the call has ended, or was cancelled
    return FromGrpc(status);
  }

 private:
  // Whether what was begun was done. Where it is given up, the call is cancelled and this awaited.
  absl::StatusOr<bool> Await(const PeerWeightsOptions& options) {
    const absl::Time limit = absl::Now() + options.silence_limit;
    absl::Status given_up;
    void* tag;
    bool ok = false;
    while (queue_.AsyncNext(&tag, &ok, absl::ToChronoTime(absl::Now() + kBetweenLooks)) ==
           grpc::CompletionQueue::TIMEOUT) {
      if (!given_up.ok()) continue;
      if (options.wanted && !options.wanted()) {
        given_up = absl::AbortedError("it is not wanted any more");
      } else if (absl::Now() > limit) {
        given_up = absl::DeadlineExceededError(
            absl::StrCat("it has said nothing for ", absl::FormatDuration(options.silence_limit)));
      }
      if (!given_up.ok()) context_.TryCancel();
    }
    if (!given_up.ok()) return given_up;
    return ok;
  }

  grpc::CompletionQueue queue_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientAsyncReader<v1::WeightsFrame>> reader_;
};

}  // namespace

struct PeerWeights::Peer {
  Placement::Source source;
  bool given_up = false;
  std::unique_ptr<v1::ExpertWeights::Stub> stub;  // once it was asked
};

PeerWeights::PeerWeights(PeerWeightsOptions options, const std::vector<Placement::Source>& sources)
    : options_(std::move(options)) {
  for (const Placement::Source& source : sources) {
    if (source.worker.id == options_.self) continue;
    peers_.push_back(std::make_unique<Peer>(Peer{source, false, nullptr}));
  }
  // Workers that load at the same time begin with different ones.
  if (!peers_.empty()) next_ = options_.self % peers_.size();
}
PeerWeights::~PeerWeights() = default;

std::shared_ptr<const std::byte> PeerWeights::Fetch(int layer, int expert,
                                                    const PackedLayout& layout) {
  const v1::WeightsLabel label = MakeWeightsLabel(options_.origin, layer, expert, layout);
  const size_t index = static_cast<size_t>(layer) * options_.num_experts + expert;
  const absl::Time until = absl::Now() + options_.limit;
  int asked = 0;
  for (size_t i = 0; i < peers_.size() && asked < kMostAsked; ++i) {
    const size_t at = (next_ + i) % peers_.size();
    Peer& peer = *peers_[at];
    const std::vector<bool>& has = peer.source.experts;
    if (peer.given_up || index >= has.size() || !has[index]) continue;
    if (asked++ > 0 && absl::Now() >= until) break;
    absl::StatusOr<std::shared_ptr<const std::byte>> memory = Ask(peer, label, until);
    if (memory.ok()) {
      next_ = (at + 1) % peers_.size();
      if (!std::exchange(some_came_, true)) {
        spdlog::info("experts come from other workers, the first from expert worker at {}",
                     peer.source.worker.address);
      }
      ++options_.counts->fetched;
      options_.counts->fetched_bytes += layout.bytes;
      return *std::move(memory);
    }
    if (absl::IsAborted(memory.status())) return nullptr;
    ++options_.counts->failed;
    peer.given_up =
        !absl::IsNotFound(memory.status()) && !absl::IsResourceExhausted(memory.status());
    if (peer.given_up) {
      spdlog::warn("expert worker {} at {} is asked for no more weights: {}", peer.source.worker.id,
                   peer.source.worker.address, memory.status().ToString());
    }
  }
  return nullptr;
}

absl::StatusOr<std::shared_ptr<const std::byte>> PeerWeights::Ask(Peer& peer,
                                                                  const v1::WeightsLabel& label,
                                                                  absl::Time until) {
  if (peer.stub == nullptr) {
    grpc::ChannelArguments arguments = ClientChannelArguments();
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetMaxReceiveMessageSize(kMaxWeightsFrameBytes);
    peer.stub = v1::ExpertWeights::NewStub(grpc::CreateCustomChannel(
        peer.source.worker.address, MakeChannelCredentials(options_.trust.get()), arguments));
  }
  WeightsReceiver receiver(label);
  WeightsCall call(*peer.stub, label, until);
  const absl::Status received = call.Receive(options_, &receiver);
  const absl::Status ended = call.Finish();
  if (!received.ok()) return received;
  if (!ended.ok()) return ended;
  return receiver.Take();
}

}  // namespace tandem
