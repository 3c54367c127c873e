// What an attention worker does in a worker's life: loads attention, shared experts and lm_head,
// and runs the gateway's steps.
#ifndef TANDEM_DEPLOYMENT_ATTENTION_ROLE_H_
#define TANDEM_DEPLOYMENT_ATTENTION_ROLE_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "common/command_line.h"
#include "deployment/worker_host.h"

namespace tandem {

struct AttentionRoleOptions {
  int64_t cache_tokens = 65536;  // rounded up to pages

  void AddTo(CommandLine& app);
};

// Errors: a broken tokenizer.
absl::StatusOr<std::unique_ptr<WorkerRole>> MakeAttentionRole(const WorkerParts& parts,
                                                              const AttentionRoleOptions& options);

}  // namespace tandem

#endif  // TANDEM_DEPLOYMENT_ATTENTION_ROLE_H_
