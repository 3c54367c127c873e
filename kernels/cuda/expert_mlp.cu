#include "kernels/cuda/expert_mlp.h"

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/exp.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/scratch.h"

namespace tandem::kernels::cuda {
namespace {

// At most kTile consecutive routes, in grouped order, of one expert.
struct RouteTile {
  int32_t expert, begin, end;
};

// Routes by expert, as GroupKernel makes it.
struct Grouping {
  int32_t* num_tiles;  // [1]
  RouteTile* tiles;    // [most_tiles]
  int32_t* order;      // [routes]: routes, those of one expert side by side
};

// As if every expert had routes, and the last of each a tile of its own.
int64_t MostTiles(int64_t routes, int64_t num_experts) {
  return routes / kTile + std::min(routes, num_experts);
}

// One block of threads. `shared`: next[experts], where an expert's next route goes.
__global__ void GroupKernel(int64_t routes, int num_experts, const int32_t* route_experts,
                            Grouping grouping) {
  auto* const next = reinterpret_cast<uint32_t*>(SharedMemory());
  const int thread = static_cast<int>(threadIdx.x);
  for (int expert = thread; expert < num_experts; expert += kThreads) next[expert] = 0;
  TANDEM_SYNC_THREADS();
  for (int64_t t = thread; t < routes; t += kThreads) AtomicAdd(&next[route_experts[t]], 1);
  TANDEM_SYNC_THREADS();
  if (thread == 0) {
    int32_t begin = 0, tiles = 0;
    for (int expert = 0; expert < num_experts; ++expert) {
      const int32_t end = begin + static_cast<int32_t>(next[expert]);
      next[expert] = static_cast<uint32_t>(begin);
      for (; begin < end; begin = begin + kTile < end ? begin + kTile : end) {
        grouping.tiles[tiles++] = {expert, begin, begin + kTile < end ? begin + kTile : end};
      }
    }
    *grouping.num_tiles = tiles;
  }
  TANDEM_SYNC_THREADS();
  // Which of an expert's routes comes first is left to chance: no result depends on it.
  for (int64_t t = thread; t < routes; t += kThreads) {
    grouping.order[AtomicAdd(&next[route_experts[t]], 1)] = static_cast<int32_t>(t);
  }
}

// Where a block's tile lies among those of all experts; false beyond the last.
__device__ inline bool PlaceRoutes(const Grouping& grouping, int64_t block, int64_t outputs,
                                   Tile* tile) {
  const int64_t output_tiles = (outputs + kTile - 1) / kTile;
  const int64_t index = block / output_tiles;
  if (index >= *grouping.num_tiles) return false;
  const RouteTile& routes = grouping.tiles[index];
  *tile = TileAt(0, 0, block % output_tiles, outputs, routes.expert);
  tile->row = routes.begin;
  tile->end_row = routes.end;
  return true;
}

// Experts of one layer may lie in different dtypes, as a checkpoint has them.
struct ExpertMatrix {
  ExpertPointers::Matrix matrix;
  int64_t output_stride;
  static constexpr int64_t input_stride = 1;

  __device__ float at(int64_t output, int64_t input) const {
    const int64_t i = output * output_stride + input;
    if (matrix.is_f32 != 0) return static_cast<const float*>(matrix.data)[i];
    return ToFloat(static_cast<const Bf16*>(matrix.data)[i]);
  }
};

// activated = round(silu(round(gate x)) * round(up x)), in grouped order.
template <typename X>
struct GateUpProduct {
  using Row = X;
  static constexpr int kMatrices = 2;

  int64_t hidden, intermediate;
  Grouping grouping;
  Rows<const X> x;
  const int32_t* route_rows;
  const ExpertPointers* experts;
  Rows<X> activated;

  __device__ bool Place(int64_t block, Tile* tile) const {
    return PlaceRoutes(grouping, block, intermediate, tile);
  }
  __device__ const X* row(const Tile&, int64_t i) const { return x[route_rows[grouping.order[i]]]; }
  __device__ ExpertMatrix matrix(const Tile& tile, int which) const {
    const ExpertPointers& expert = experts[tile.batch];
    return {which == 0 ? expert.gate : expert.up, hidden};
  }
  __device__ void Store(const Tile&, int64_t i, int64_t n, const float* sums) const {
    const float gate = ToFloat(Round<X>(sums[0])), up = ToFloat(Round<X>(sums[1]));
    activated[i][n] = Round<X>(Silu(gate) * up);
  }
};

template <typename X>
struct DownProduct {
  using Row = X;
  static constexpr int kMatrices = 1;

  int64_t hidden, intermediate;
  Grouping grouping;
  Rows<const X> activated;
  const ExpertPointers* experts;
  Rows<X> out;

  __device__ bool Place(int64_t block, Tile* tile) const {
    return PlaceRoutes(grouping, block, hidden, tile);
  }
  __device__ const X* row(const Tile&, int64_t i) const { return activated[i]; }
  __device__ ExpertMatrix matrix(const Tile& tile, int) const {
    return {experts[tile.batch].down, intermediate};
  }
  __device__ void Store(const Tile&, int64_t i, int64_t n, const float* sums) const {
    out[grouping.order[i]][n] = Round<X>(sums[0]);
  }
};

// The parts of a call's scratch.
struct Scratch {
  Grouping grouping;
  std::byte* activated;
  size_t bytes;

  Scratch(std::byte* memory, int64_t routes, int64_t num_experts, int64_t intermediate, Dtype act) {
    ScratchParts parts(memory);
    grouping.num_tiles = parts.Take<int32_t>(1);
    grouping.tiles = parts.Take<RouteTile>(MostTiles(routes, num_experts));
    grouping.order = parts.Take<int32_t>(routes);
    activated = parts.Take(routes * intermediate * static_cast<int64_t>(DtypeBytes(act)));
    bytes = parts.bytes();
  }
};

}  // namespace

size_t ExpertMlpScratchBytes(int64_t routes, int64_t num_experts, int64_t intermediate, Dtype act) {
  return Scratch(nullptr, routes, num_experts, intermediate, act).bytes;
}

void ExpertMlp(Stream stream, const ExpertMlpTensors& t, std::byte* scratch) {
  const int64_t routes = t.out.rows(), num_experts = t.experts.rows(), hidden = t.x.width();
  if (routes == 0) return;
  const Scratch parts(scratch, routes, num_experts, t.intermediate, t.x.dtype);
  Launch(stream, GroupKernel, 1, kThreads, static_cast<size_t>(num_experts) * sizeof(uint32_t),
         routes, static_cast<int>(num_experts), DataOf<const int32_t>(t.route_experts),
         parts.grouping);
  const int64_t tiles = MostTiles(routes, num_experts);
  const auto* const experts = DataOf<const ExpertPointers>(t.experts);
  WithType(t.x.dtype, [&](auto act) {
    using X = typename decltype(act)::type;
    auto* const activated = reinterpret_cast<X*>(parts.activated);
    LaunchProduct(stream, tiles * TilesOf(t.intermediate), hidden,
                  GateUpProduct<X>{hidden, t.intermediate, parts.grouping, RowsOf<const X>(t.x),
                                   DataOf<const int32_t>(t.route_rows), experts,
                                   Rows<X>{activated, t.intermediate}});
    LaunchProduct(
        stream, tiles * TilesOf(hidden), t.intermediate,
        DownProduct<X>{hidden, t.intermediate, parts.grouping,
                       Rows<const X>{activated, t.intermediate}, experts, RowsOf<X>(t.out)});
  });
}

}  // namespace tandem::kernels::cuda
