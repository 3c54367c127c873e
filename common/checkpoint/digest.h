// A name for a checkpoint's content, equal on every machine that has the same one.
#ifndef TANDEM_COMMON_CHECKPOINT_DIGEST_H_
#define TANDEM_COMMON_CHECKPOINT_DIGEST_H_

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"

namespace tandem {

// 32 hexadecimal digits: XXH3-128 of the config, of name, dtype and shape of every tensor that the
// config needs, and of bytes sampled from each: checkpoints of the same shapes, a base model and
// its chat version, differ. Does not depend on how tensors are spread over files. Blocks; reports
// the share done, which grows to 1, one report at a time. Cost: about one read of 4 KiB per tensor,
// sixteen at a time.
//   DATA_LOSS  a file has shrunk since the checkpoint was opened
//   CANCELLED  the checkpoint is to stop
absl::StatusOr<std::string> CheckpointDigest(const Checkpoint& checkpoint,
                                             const std::function<void(float)>& progress = nullptr);

}  // namespace tandem

#endif  // TANDEM_COMMON_CHECKPOINT_DIGEST_H_
