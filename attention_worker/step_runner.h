// Runs steps: makes their batches, walks the layers with all of them at once, answers them.
#ifndef TANDEM_ATTENTION_WORKER_STEP_RUNNER_H_
#define TANDEM_ATTENTION_WORKER_STEP_RUNNER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "attention_worker/engine_counts.h"
#include "attention_worker/latent_cache.h"
#include "attention_worker/layer_walk.h"
#include "attention_worker/model.h"
#include "attention_worker/sequence.h"
#include "common/transport/attention_link.h"

namespace tandem {

// One session's step on its way.
struct Job {
  SessionState* state = nullptr;
  std::vector<Advance> advances;
  std::vector<Batch*> batches;  // of the advances
  StepResult result;
};

// Belongs to the engine thread.
class StepRunner {
 public:
  // `ids_with_token` [vocab] or empty: what masked draws may take. All pointers must outlive the
  // runner.
  StepRunner(kernels::Backend* backend, const AttentionModel* model, ExpertDispatcher* dispatcher,
             LatentCache* cache, std::vector<uint8_t> ids_with_token, EngineCounts* counts);

  // Makes the new batches of a step and takes their pages. Requires ValidateStep to be OK.
  Job Begin(SessionState* state, Step step);

  // Runs jobs of different sessions together and fills in their results, but for free_pages.
  // `end_cancelled` is called at every layer boundary: it ends the sequences that were cancelled
  // and says whether there were any.
  void Run(std::vector<Job>* jobs, const std::function<bool()>& end_cancelled);

  // Ends a sequence: from now on its rows are dead. Its pages go back at once, so never within a
  // layer.
  void End(SessionState* state, Sequence& sequence);

 private:
  struct Finished;

  void AddBatch(SessionState* state, NewBatch new_batch);
  void FinishRows(std::vector<Job>* jobs, const std::function<bool()>& end_cancelled);
  void TakeSampled(SessionState* state, Sequence& sequence, const RowResult& row);
  void FinishJob(Job* job, const absl::Status& walk_status);

  const AttentionModel& model_;
  LatentCache& cache_;
  const std::vector<uint8_t> ids_with_token_;
  EngineCounts& counts_;
  Workspace workspace_;
  SharedRows expert_rows_;
  const ModelContext context_;
  LayerWalk walk_;
  uint64_t next_order_ = 1;
  uint64_t num_walks_ = 0;
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_STEP_RUNNER_H_
