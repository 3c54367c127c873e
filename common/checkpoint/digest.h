// A name for a checkpoint's content, equal on every machine that has the same one.
#ifndef TANDEM_COMMON_CHECKPOINT_DIGEST_H_
#define TANDEM_COMMON_CHECKPOINT_DIGEST_H_

#include <string>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"

namespace tandem {

// 32 hexadecimal digits: XXH3-128 of the config, of name, dtype and shape of every tensor that the
// config needs, and of bytes sampled from each: checkpoints of the same shapes, a base model and
// its chat version, differ. Does not depend on how tensors are spread over files. Cost: about 20
// small reads per tensor.
absl::StatusOr<std::string> CheckpointDigest(const Checkpoint& checkpoint);

}  // namespace tandem

#endif  // TANDEM_COMMON_CHECKPOINT_DIGEST_H_
