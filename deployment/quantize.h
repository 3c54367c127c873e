// Packs a checkpoint's weights ahead of the first start.
#ifndef TANDEM_DEPLOYMENT_QUANTIZE_H_
#define TANDEM_DEPLOYMENT_QUANTIZE_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "deployment/backend.h"

namespace tandem {

struct QuantizeOptions {
  std::string model_dir;
  BackendOptions backend;               // `weights`: int8 or int4
  std::function<void(float)> progress;  // share that is done
};

struct QuantizedWeights {
  std::string dir;        // where they are
  int64_t written = 0;    // files, by this call
  int64_t were_kept = 0;  // that were there and are sound
};

// Afterwards every unit is kept where a start with the same flags looks for it. Layer by layer: in
// memory are what an attention worker holds and the experts of two layers.
//   INVALID_ARGUMENT  the format is none that is kept, or nothing is to be kept
//   UNAVAILABLE       another process is writing one of the files
// and those of the checkpoint and of WritePackedFile; what was written until then stays.
absl::StatusOr<QuantizedWeights> Quantize(const QuantizeOptions& options);

}  // namespace tandem

#endif  // TANDEM_DEPLOYMENT_QUANTIZE_H_
