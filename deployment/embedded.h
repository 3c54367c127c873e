// A whole deployment in one process: gateway, attention worker and experts joined by direct calls.
#ifndef TANDEM_DEPLOYMENT_EMBEDDED_H_
#define TANDEM_DEPLOYMENT_EMBEDDED_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/tensor.h"
#include "deployment/backend.h"
#include "gateway/scheduler.h"
#include "gateway/served_model.h"
#include "gateway/step_driver.h"
#include "proto/inference.pb.h"

namespace tandem {

struct EmbeddedOptions {
  std::string model_dir;
  std::string served_name;  // empty: DefaultServedName
  Dtype dtype = Dtype::kBF16;
  BackendOptions backend;
  int64_t cache_tokens = 65536;  // rounded up to pages
  // For benchmarks alone: from this seed, without a look at the checkpoint's own. No program that
  // serves sets it. UNIMPLEMENTED on a device that does not make weights.
  std::optional<uint64_t> made_up_weights = std::nullopt;
  int max_running = 0;  // requests at once, of InProcessDeployment; 0: SchedulerPolicy's
  std::function<void(float)> digest_progress;  // share of the digest that is read: first
  std::function<void(float)> progress;         // share of the weights that is loaded
  const std::atomic<bool>* stop = nullptr;     // once true, loading ends with CANCELLED
};

// Attention worker and experts of one checkpoint, given to a step driver.
class EmbeddedDeployment {
 public:
  // Loads everything and adds the worker to `driver`, which must outlive the deployment.
  // Errors: those of the checkpoint, the tokenizer and the cache's allocation; each a sentence.
  static absl::StatusOr<std::unique_ptr<EmbeddedDeployment>> Create(const EmbeddedOptions& options,
                                                                    StepDriver* driver);
  ~EmbeddedDeployment();

  const ServedModel& model() const;
  // Where everything runs and in which format the weights are, and why; for people.
  std::string Description() const;
  // The attention and the expert worker, as GetStatus shows them.
  std::vector<v1::WorkerStatus> Workers() const;
  // CheckpointWatch's: logs, once, that the checkpoint's files have changed.
  CounterSnapshot LookAtFiles() const;

 private:
  struct Parts;
  explicit EmbeddedDeployment(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// The same with the public service in front, reached without a socket: what the tool uses.
class InProcessDeployment {
 public:
  static absl::StatusOr<std::unique_ptr<InProcessDeployment>> Create(
      const EmbeddedOptions& options);
  ~InProcessDeployment();
  std::shared_ptr<grpc::Channel> Channel();

 private:
  struct Parts;
  explicit InProcessDeployment(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// Fills in a worker's counters.
void AddCounters(const CounterSnapshot& counters, v1::WorkerStatus* status);

}  // namespace tandem

#endif  // TANDEM_DEPLOYMENT_EMBEDDED_H_
