// What the contracts of kernels/ops/*.h require of their arguments, as far as it can be seen from
// shapes, dtypes and index spans. A violation ends the process (common/check.h).
#ifndef TANDEM_KERNELS_CPU_CHECK_ARGS_H_
#define TANDEM_KERNELS_CPU_CHECK_ARGS_H_

#include "kernels/ops/dense.h"
#include "kernels/ops/mla.h"
#include "kernels/ops/moe.h"
#include "kernels/ops/sample.h"

namespace tandem::kernels::cpu {

void CheckArgs(const EmbedArgs& args);
void CheckArgs(const RmsNormArgs& args);
void CheckArgs(const LinearArgs& args);
void CheckArgs(const SiluMulArgs& args);
void CheckArgs(const AddArgs& args);
void CheckArgs(const RopeTableArgs& args);
void CheckArgs(const RopeArgs& args);
void CheckArgs(const LatentAppendArgs& args);
void CheckArgs(const MlaAbsorbQueryArgs& args);
void CheckArgs(const MlaDecodeArgs& args);
void CheckArgs(const MlaProjectValueArgs& args);
void CheckArgs(const MlaPrefillArgs& args);
void CheckArgs(const RouteArgs& args);
void CheckArgs(const ExpertMlpArgs& args);
void CheckArgs(const CombineArgs& args);
void CheckArgs(const SampleArgs& args);
void CheckArgs(const LogProbArgs& args);

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_CHECK_ARGS_H_
