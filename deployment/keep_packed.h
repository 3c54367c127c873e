// Where a process keeps what it packs of a checkpoint.
#ifndef TANDEM_DEPLOYMENT_KEEP_PACKED_H_
#define TANDEM_DEPLOYMENT_KEEP_PACKED_H_

#include <string>

#include "common/checkpoint/checkpoint.h"
#include "common/mode.h"

namespace tandem {

constexpr char kKeepNothing[] = "off";

struct KeepPackedOptions {
  std::string model_dir;
  // --packed-weights. Empty: packed-FORMAT in the checkpoint's folder, unless the weights are so
  // small that they are packed in a moment and it is not there. kKeepNothing: nowhere. Otherwise
  // DIGEST-FORMAT in this folder, which may serve any number of checkpoints.
  std::string folder;
  WeightFormat format = WeightFormat::kBF16;
  std::string digest;  // of the checkpoint
  bool wait = false;   // PackedWeights::Options::wait
};

// Has packed weights looked for and kept. Does nothing for formats that are not kept, those of
// floats.
void KeepPacked(const KeepPackedOptions& options, Checkpoint* checkpoint);

// Names what packed weights are made of: the digest, which samples every tensor, and for what it
// does not see, size and time of the last change of every file.
std::string PackedSource(const Checkpoint& checkpoint, const std::string& digest);

}  // namespace tandem

#endif  // TANDEM_DEPLOYMENT_KEEP_PACKED_H_
