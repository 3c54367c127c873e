// What the contracts of kernels/ops/*.h and kernels/weights.h require of shapes and dtypes. A
// violation ends the process (common/check.h). Called by kernels/backend.cc alone, for every
// backend.
#ifndef TANDEM_KERNELS_CHECK_ARGS_H_
#define TANDEM_KERNELS_CHECK_ARGS_H_

#include "common/mode.h"
#include "kernels/ops/dense.h"
#include "kernels/ops/mla.h"
#include "kernels/ops/moe.h"
#include "kernels/ops/sample.h"
#include "kernels/weights.h"

namespace tandem::kernels {

void CheckCopy(const DeviceTensor& from, const DeviceTensor& to);

void CheckLinearTensor(const TensorView& tensor, WeightFormat format);
void CheckKvUpTensor(const TensorView& tensor, const KvUpShape& shape, WeightFormat format);
void CheckEmbeddingTensor(const TensorView& tensor, WeightFormat format);
void CheckNormTensor(const TensorView& tensor, WeightFormat format);
void CheckExpertLayerShape(const ExpertLayerShape& shape);
void CheckExpertTensors(const ExpertTensors& tensors, const ExpertLayerShape& shape,
                        WeightFormat format);

void CheckArgs(const EmbedArgs& args);
void CheckArgs(const GatherRowsArgs& args);
void CheckArgs(const RmsNormArgs& args);
void CheckArgs(const LinearArgs& args);
void CheckArgs(const SiluMulArgs& args);
void CheckArgs(const AddArgs& args);
void CheckArgs(const RopeTableArgs& args);
void CheckArgs(const RopeArgs& args);
void CheckArgs(const LatentAppendArgs& args);
void CheckArgs(const MlaAbsorbQueryArgs& args);
void CheckArgs(const MlaAbsorbedArgs& args);
void CheckArgs(const MlaProjectValueArgs& args);
void CheckArgs(const MlaExpandedArgs& args);
void CheckArgs(const RouteArgs& args);
void CheckArgs(const ExpertMlpArgs& args);
void CheckArgs(const CombineArgs& args);
void CheckArgs(const AdjustLogitsArgs& args);
void CheckArgs(const SampleArgs& args);
void CheckArgs(const TopLogProbsArgs& args);
void CheckArgs(const LogProbArgs& args);

}  // namespace tandem::kernels

#endif  // TANDEM_KERNELS_CHECK_ARGS_H_
