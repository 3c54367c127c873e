// What an expert worker does in a worker's life: loads the experts that the placement gives it, and
// serves them.
#ifndef TANDEM_DEPLOYMENT_EXPERT_ROLE_H_
#define TANDEM_DEPLOYMENT_EXPERT_ROLE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "deployment/worker_host.h"

namespace tandem {

absl::StatusOr<std::unique_ptr<WorkerRole>> MakeExpertRole(const WorkerParts& parts);

}  // namespace tandem

#endif  // TANDEM_DEPLOYMENT_EXPERT_ROLE_H_
