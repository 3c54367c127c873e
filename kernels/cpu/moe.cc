#include "kernels/ops/moe.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/types/span.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/local_memory.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/cpu/scratch.h"

namespace tandem::kernels::cpu {
namespace {

// ---- Route ----

// In place: softmax in f32, exponentials summed in ascending order.
void Softmax(absl::Span<float> values) {
  const float max = *std::max_element(values.begin(), values.end());
  for (float& v : values) v -= max;
  ExpRow(values.data(), static_cast<int64_t>(values.size()), values.data());
  float sum = 0.0f;
  for (float v : values) sum += v;
  for (float& v : values) v /= sum;
}

// The index of the highest score that is not taken yet, the lower one of equals.
int BestFree(absl::Span<const float> scores, const std::vector<bool>& taken) {
  int best = -1;
  for (int i = 0; i < static_cast<int>(scores.size()); ++i) {
    if (!taken[i] && (best < 0 || scores[i] > scores[best])) best = i;
  }
  return best;
}

// Sets the scores outside of the best groups to 0.
void KeepBestGroups(absl::Span<float> scores, int num_groups, int top_groups) {
  const size_t group_size = scores.size() / num_groups;
  std::vector<float> best(num_groups);
  for (int g = 0; g < num_groups; ++g) {
    const auto group = scores.subspan(g * group_size, group_size);
    best[g] = *std::max_element(group.begin(), group.end());
  }
  std::vector<bool> kept(num_groups, false);
  for (int i = 0; i < top_groups; ++i) kept[BestFree(best, kept)] = true;
  for (int g = 0; g < num_groups; ++g) {
    if (kept[g]) continue;
    for (float& s : scores.subspan(g * group_size, group_size)) s = 0.0f;
  }
}

void ChooseExperts(const RouteArgs& args, absl::Span<float> scores, std::byte* ids_out,
                   std::byte* weights_out) {
  if (args.num_groups > 0) KeepBestGroups(scores, args.num_groups, args.top_groups);
  std::vector<bool> taken(scores.size(), false);
  std::vector<int32_t> ids(args.top_k);
  std::vector<float> weights(args.top_k);
  float sum = 0.0f;
  for (int i = 0; i < args.top_k; ++i) {
    ids[i] = BestFree(scores, taken);
    taken[ids[i]] = true;
    weights[i] = scores[ids[i]];
    sum += weights[i];
  }
  const float denominator = sum + 1e-20f;
  for (float& w : weights) w = args.normalize ? w / denominator : w * args.scaling;
  std::memcpy(ids_out, ids.data(), ids.size() * sizeof(int32_t));
  std::memcpy(weights_out, weights.data(), weights.size() * sizeof(float));
}

// ---- ExpertMlp ----

// Routes that are computed together; bounds the scratch memory.
constexpr int64_t kMaxRoutesAtOnce = 2048;

// Consecutive routes, in sorted order, of one expert.
struct Group {
  int32_t expert;
  int64_t begin;
  int64_t end;
};

// The routes ordered by expert, those of one expert in their given order.
std::vector<int32_t> SortByExpert(const ExpertMlpArgs& args) {
  const absl::Span<const int32_t> route_experts = Ints(args.route_experts);
  std::vector<int32_t> next(args.experts.shape().num_experts + 1, 0);
  for (int32_t e : route_experts) ++next[e + 1];
  for (size_t e = 1; e < next.size(); ++e) next[e] += next[e - 1];
  std::vector<int32_t> order(route_experts.size());
  for (size_t t = 0; t < order.size(); ++t) {
    order[next[route_experts[t]]++] = static_cast<int32_t>(t);
  }
  return order;
}

// As what the experts' gate and up take rows of x.
RowKind RowsOf(const ExpertMlpArgs& args, int32_t expert) {
  return Expert(args.experts, expert).gate.RowsFor(args.x.dtype);
}

// Calls fn(i) for i < count, some at a time per thread.
template <typename Fn>
void ForEachRow(int64_t count, ThreadPool& pool, Fn fn) {
  constexpr int64_t kRowGrain = 16;
  pool.ParallelFor(count, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) fn(i);
  });
}

// Computes the routes order[begin, end) and holds their intermediate values.
class ExpertPass {
 public:
  // `rows`: those of args.x.
  ExpertPass(const ExpertMlpArgs& args, const MatrixRows& rows, absl::Span<const int32_t> order,
             ThreadPool& pool)
      : args_(args),
        rows_(rows),
        out_(View(args.out)),
        route_rows_(Ints(args.route_rows)),
        order_(order),
        pool_(pool),
        hidden_(args.experts.shape().hidden),
        intermediate_(args.experts.shape().intermediate) {
    const absl::Span<const int32_t> route_experts = Ints(args.route_experts);
    for (int64_t i = 0; i < static_cast<int64_t>(order.size()); ++i) {
      const int32_t expert = route_experts[order[i]];
      if (groups_.empty() || groups_.back().expert != expert) groups_.push_back({expert, i, i});
      groups_.back().end = i + 1;
    }
  }

  void Run() {
    Gather();
    ForEachBlock(intermediate_, &ExpertMatrices::gate,
                 [this](const Group& g, const Block& block) { GateAndUp(g, block); });
    TakeActivated();
    ForEachBlock(hidden_, &ExpertMatrices::down,
                 [this](const Group& g, const Block& block) { Down(g, block); });
  }

 private:
  // Outputs per piece of work: few enough that a single expert's matrix still feeds several
  // threads.
  static constexpr int64_t kBlock = 3 * kPanelOutputs;

  // What a thread keeps between its calls.
  struct Scratch {
    MatrixRows x;  // of args.x, one per route
    std::vector<float> activated_floats;
    MatrixRows activated;  // the same
  };

  // Outputs of an expert's matrices.
  struct Block {
    int64_t begin;
    int64_t end;
    const std::byte* next;  // weights of the block that this thread probably takes next, or null
  };

  // Calls fn(group, block) for all blocks of all groups; `first`: the matrix that fn reads first.
  template <typename Fn>
  void ForEachBlock(int64_t outputs, Matrix ExpertMatrices::*first, Fn fn) {
    const int64_t blocks = CeilDiv(outputs, kBlock);
    const int64_t items = blocks * static_cast<int64_t>(groups_.size());
    const auto begin_of = [&](int64_t item) -> const std::byte* {
      if (item == items) return nullptr;
      const Matrix& matrix = Expert(args_.experts, groups_[item / blocks].expert).*first;
      return matrix.panel(item % blocks * (kBlock / kPanelOutputs));
    };
    pool_.ParallelFor(items, 1, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t n = item % blocks * kBlock;
        fn(groups_[item / blocks], Block{n, std::min(n + kBlock, outputs), begin_of(item + 1)});
      }
    });
  }

  static Scratch& ThreadScratch() {
    thread_local Scratch scratch;
    return scratch;
  }

  void Gather() {
    const RowKind kind = RowsOf(args_, groups_[0].expert);
    const auto routes = static_cast<int64_t>(order_.size());
    scratch_.x.Resize(kind, routes, hidden_);
    scratch_.activated.Resize(kind, routes, intermediate_);
    activated_ = Grown(scratch_.activated_floats, routes * intermediate_);
    ForEachRow(routes, pool_,
               [&](int64_t i) { scratch_.x.Copy(i, rows_, route_rows_[order_[i]]); });
  }

  // The block's columns of round(silu(round(gate x)) * round(up x)). What gate and up give is still
  // in the nearest caches when it is taken up.
  void GateAndUp(const Group& g, const Block& block) {
    thread_local std::vector<float> gate_columns, up_columns;
    const ExpertMatrices& weights = Expert(args_.experts, g.expert);
    const bool round = args_.x.dtype == Dtype::kBF16;
    const int64_t rows = g.end - g.begin;
    float* const gate = Grown(gate_columns, rows * kBlock);
    float* const up = Grown(up_columns, rows * kBlock);
    const auto multiply = [&](const Matrix& weight, float* columns, const std::byte* next) {
      const TensorView out(columns, Dtype::kF32, {rows, kBlock});
      Multiply({weight, scratch_.x, g.begin, rows, out, nullptr, round, block.begin, next},
               block.begin, block.end);
    };
    multiply(weights.gate, gate, weights.up.panel(block.begin / kPanelOutputs));
    multiply(weights.up, up, block.next);
    for (int64_t i = 0; i < rows; ++i) {
      SiluMulWidened(gate + i * kBlock, up + i * kBlock, args_.x.dtype, block.end - block.begin,
                     activated_ + (g.begin + i) * intermediate_ + block.begin);
    }
  }

  void TakeActivated() {
    ForEachRow(static_cast<int64_t>(order_.size()), pool_, [&](int64_t i) {
      scratch_.activated.Set(i, activated_ + i * intermediate_, Dtype::kF32);
    });
  }

  void Down(const Group& g, const Block& block) {
    const Matrix& weight = Expert(args_.experts, g.expert).down;
    Product product = {weight, scratch_.activated,     g.begin, g.end - g.begin,
                       out_,   order_.data() + g.begin};
    product.next = block.next;
    Multiply(product, block.begin, block.end);
  }

  const ExpertMlpArgs& args_;
  const MatrixRows& rows_;
  const TensorView out_;
  absl::Span<const int32_t> route_rows_;
  absl::Span<const int32_t> order_;  // routes of this pass, by expert
  ThreadPool& pool_;
  const int64_t hidden_;
  const int64_t intermediate_;
  Scratch& scratch_ = ThreadScratch();  // the caller's
  std::vector<Group> groups_;
  float* activated_ = nullptr;  // [routes, intermediate]
};

}  // namespace

void Route(const RouteArgs& args, ThreadPool& pool) {
  const int64_t rows = args.x.rows();
  const int64_t num_experts = args.weight.outputs();
  std::vector<float> scores(rows * num_experts);
  const TensorLayout layout(Dtype::kF32, {rows, num_experts});
  Linear({args.x, args.weight, DeviceAccess::Tensor(scores.data(), layout)}, pool);
  pool.ParallelFor(rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const absl::Span<float> row(scores.data() + i * num_experts, num_experts);
      Softmax(row);
      ChooseExperts(args, row, Row(args.expert_ids, i), Row(args.weights, i));
    }
  });
}

void ExpertMlp(const ExpertMlpArgs& args, ThreadPool& pool) {
  const std::vector<int32_t> order = SortByExpert(args);
  const absl::Span<const int32_t> routes(order);
  if (routes.empty()) return;
  // A row is converted or quantized once, whatever number of routes it has.
  thread_local MatrixRows of_thread;
  MatrixRows& rows = of_thread;
  rows.Resize(RowsOf(args, Ints(args.route_experts)[0]), args.x.rows(), args.x.width());
  ForEachRow(args.x.rows(), pool, [&](int64_t i) { rows.Set(i, Row(args.x, i), args.x.dtype); });
  for (size_t begin = 0; begin < routes.size(); begin += kMaxRoutesAtOnce) {
    ExpertPass(args, rows, routes.subspan(begin, kMaxRoutesAtOnce), pool).Run();
  }
}

void Combine(const CombineArgs& args, ThreadPool& pool) {
  const TensorView expert_rows = View(args.expert_rows);
  const absl::Span<const int32_t> offsets = Ints(args.offsets);
  const auto* weights = Data<const float>(args.weights);
  pool.ParallelFor(args.out.rows(), 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int32_t first = offsets[i];
      const auto count = static_cast<size_t>(offsets[i + 1] - first);
      CombineRow(expert_rows, first, {weights + first, count}, Row(args.out, i));
    }
  });
}

}  // namespace tandem::kernels::cpu
