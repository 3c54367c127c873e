// A tiny real model, jobs for it, and what each of them is answered when nothing breaks.
#ifndef TANDEM_TESTS_SIMULATION_TINY_MODEL_H_
#define TANDEM_TESTS_SIMULATION_TINY_MODEL_H_

#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "attention_worker/engine_core.h"
#include "attention_worker/local_experts.h"
#include "attention_worker/model.h"
#include "common/check.h"
#include "common/checkpoint/checkpoint.h"
#include "expert_worker/loaded_experts.h"
#include "gateway/placement_planner.h"
#include "gateway/scheduler.h"
#include "kernels/backend.h"
#include "tests/common/checkpoint/safetensors_writer.h"
#include "tests/simulation/simulated_network.h"

namespace tandem {

// One thing that a client hears, to the bit.
struct Heard {
  int32_t token = -1;     // -1: a score
  int32_t position = -1;  // of a score
  uint32_t log_prob = 0;  // its bits
  std::vector<TokenLogProb> top = {};
  bool operator==(const Heard&) const = default;
};
inline Heard HeardOf(const SchedulerEvent& event) {
  if (event.kind == SchedulerEvent::Kind::kToken) {
    return {event.token.id, -1, std::bit_cast<uint32_t>(event.token.log_prob), event.token.top};
  }
  return {-1, event.row.position, std::bit_cast<uint32_t>(event.log_prob)};
}

struct KnownJob {
  Job job;
  std::vector<Heard> answer;
  JobEnd end = JobEnd::kFailed;
};

// Everything of one checkpoint that does not change; shared by all simulations of a program.
class TinyModel {
 public:
  static constexpr Dtype kMode = Dtype::kF32;
  static constexpr WeightFormat kFormat = WeightFormat::kF32;
  static constexpr int kMostPages = 3;  // that one of the jobs needs

  TinyModel() {
    WriteRandomCheckpoint(dir_.path(), kSmallConfig, 5);
    backend_ = Value(kernels::CreateCpuBackend(1));
    checkpoint_ = Value(Checkpoint::Open(dir_.path()));
    model_ =
        Value(AttentionModel::Load(*checkpoint_, backend_.get(), kMode, kFormat, [](float) {}));
    Dice dice(1);
    for (int i = 0; i < 96; ++i) jobs_.push_back({MakeJob(&dice), {}, JobEnd::kFailed});
    RunUndisturbed();
  }

  const ModelConfig& config() const { return checkpoint_->config(); }
  kernels::Backend* backend() const { return backend_.get(); }
  const Checkpoint* checkpoint() const { return checkpoint_.get(); }
  const AttentionModel* model() const { return model_.get(); }
  const std::vector<KnownJob>& jobs() const { return jobs_; }

  template <typename T>
  static T Value(absl::StatusOr<T> value) {
    TANDEM_CHECK(value.ok());
    return *std::move(value);
  }

 private:
  Job MakeJob(Dice* dice) const {
    Job job;
    const int64_t size = dice->Chance(0.5)   ? dice->Between(1, 20)
                         : dice->Chance(0.6) ? dice->Between(50, 75)
                                             : dice->Between(100, 140);
    // Some begin like others, whose pages in the cache they may share.
    if (!jobs_.empty() && dice->Chance(0.4)) job.prompt = dice->Of(jobs_).job.prompt;
    const auto kept = std::min<int64_t>(dice->Between(60, 130), static_cast<int64_t>(size));
    if (static_cast<int64_t>(job.prompt.size()) > kept) job.prompt.resize(kept);
    while (static_cast<int64_t>(job.prompt.size()) < size) {
      job.prompt.push_back(static_cast<int32_t>(dice->Between(0, config().vocab_size - 1)));
    }
    job.expanded_length = SequenceSpec::ExpandedLength(size);
    job.max_new_tokens = static_cast<int32_t>(dice->Chance(0.1) ? 0 : dice->Between(1, 24));
    if (dice->Chance(0.5)) {
      job.sampling.temperature = 1.0f;
      job.sampling.top_k = static_cast<int32_t>(dice->Between(0, 20));
      job.sampling.seed = static_cast<uint64_t>(dice->Between(1, 1000));
    }
    if (dice->Chance(0.3)) job.eos_ids = {static_cast<int32_t>(dice->Between(0, 95))};
    if (dice->Chance(0.4)) {
      job.sampling.repetition_penalty = 1.2f;
      job.sampling.frequency_penalty = 0.3f;
      job.sampling.logit_bias = {{static_cast<int32_t>(dice->Between(0, 95)), 2.0f}};
      job.sampling.min_tokens = static_cast<int32_t>(dice->Between(0, 5));
      job.sampling.end_ids = job.eos_ids;
      job.top_logprobs = static_cast<int32_t>(dice->Between(0, 3));
    }
    if (dice->Chance(0.2)) job.max_rows_per_batch = static_cast<int32_t>(dice->Between(8, 64));
    const double scored = job.max_new_tokens == 0 ? 0.3 : dice->Chance(0.2) ? 0.1 : 0;
    for (int32_t position = 0; position + 1 < size; ++position) {
      if (dice->Chance(scored)) job.scored.push_back({position, job.prompt[position + 1], false});
    }
    return job;
  }

  // One after the other, alone, with the experts of the same process, through all layers at once.
  void RunUndisturbed() {
    const auto experts = Value(LoadedExperts::Create(checkpoint_.get(), backend_.get(), kFormat));
    const Placement placement = PlacementOfOne(config(), {1, "", 0}, {1, 1});
    TANDEM_CHECK(experts->Load(placement, 1, nullptr).ok());
    LocalExperts local(backend_.get(), config().experts_per_token, experts->Layers());
    const auto core = Value(AttentionEngineCore::Create(
        backend_.get(), model_.get(), &local, {.total_pages = 8, .ids_with_token = {}}, [] {}));
    class Observer : public AttentionLink::Observer {
     public:
      void OnStepResult(StepResult result) override { results.push_back(std::move(result)); }
      void OnDown(absl::Status) override { TANDEM_CHECK(false); }
      std::vector<StepResult> results;
    } observer;
    const std::unique_ptr<AttentionLink> link = core->Connect(&observer);
    SchedulerPolicy policy;
    policy.decode_groups = 1;
    policy.prefix_caching = false;
    Scheduler scheduler(policy);
    TANDEM_CHECK(scheduler.AddWorker(1, link->info()).ok());
    JobId id = 0;
    for (KnownJob& known : jobs_) {
      TANDEM_CHECK(scheduler.Add(++id, known.job, absl::UnixEpoch()).ok());
      const auto take = [&known](std::vector<SchedulerEvent> events) {
        for (const SchedulerEvent& event : events) {
          if (event.kind == SchedulerEvent::Kind::kDone) known.end = event.end;
          if (event.kind == SchedulerEvent::Kind::kToken ||
              event.kind == SchedulerEvent::Kind::kScored) {
            known.answer.push_back(HeardOf(event));
          }
        }
      };
      while (scheduler.num_waiting() + scheduler.num_running() > 0) {
        WorkerOrders orders = scheduler.NextStep(1);
        for (const SequenceId sequence : orders.releases) link->Release(sequence);
        for (SequenceSpec& spec : orders.opens) link->OpenSequence(std::move(spec));
        if (orders.step.has_value()) link->Run(*std::move(orders.step));
        take(std::move(orders.events));
        while (core->Turn()) continue;
        for (StepResult& result : std::exchange(observer.results, {})) {
          take(scheduler.OnStepDone(1, std::move(result)));
        }
      }
      TANDEM_CHECK(known.end != JobEnd::kFailed);
    }
  }

  ScratchDir dir_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<AttentionModel> model_;
  std::vector<KnownJob> jobs_;
};

}  // namespace tandem

#endif  // TANDEM_TESTS_SIMULATION_TINY_MODEL_H_
