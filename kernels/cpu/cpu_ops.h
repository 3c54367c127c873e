// The ops of kernels/ops/*.h on the CPU, one function each. Arguments are checked
// (kernels/check_args.h) before they come here. Any number of threads may call them.
#ifndef TANDEM_KERNELS_CPU_CPU_OPS_H_
#define TANDEM_KERNELS_CPU_CPU_OPS_H_

#include "kernels/cpu/thread_pool.h"
#include "kernels/ops/dense.h"
#include "kernels/ops/mla.h"
#include "kernels/ops/moe.h"
#include "kernels/ops/sample.h"

namespace tandem::kernels::cpu {

void Embed(const EmbedArgs& args, ThreadPool& pool);
void GatherRows(const GatherRowsArgs& args, ThreadPool& pool);
void RmsNorm(const RmsNormArgs& args, ThreadPool& pool);
void Linear(const LinearArgs& args, ThreadPool& pool);
void SiluMul(const SiluMulArgs& args, ThreadPool& pool);
void Add(const AddArgs& args, ThreadPool& pool);

void RopeTable(const RopeTableArgs& args, ThreadPool& pool);
void Rope(const RopeArgs& args, ThreadPool& pool);
void LatentAppend(const LatentAppendArgs& args, ThreadPool& pool);
void MlaAbsorbQuery(const MlaAbsorbQueryArgs& args, ThreadPool& pool);
void MlaAbsorbed(const MlaAbsorbedArgs& args, ThreadPool& pool);
void MlaProjectValue(const MlaProjectValueArgs& args, ThreadPool& pool);
void MlaExpanded(const MlaExpandedArgs& args, ThreadPool& pool);

void Route(const RouteArgs& args, ThreadPool& pool);
void ExpertMlp(const ExpertMlpArgs& args, ThreadPool& pool);
void Combine(const CombineArgs& args, ThreadPool& pool);

void AdjustLogits(const AdjustLogitsArgs& args, ThreadPool& pool);
void Sample(const SampleArgs& args, ThreadPool& pool);
void TopLogProbs(const TopLogProbsArgs& args, ThreadPool& pool);
void LogProb(const LogProbArgs& args, ThreadPool& pool);

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_CPU_OPS_H_
