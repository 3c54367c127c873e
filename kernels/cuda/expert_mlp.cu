#include "kernels/cuda/expert_mlp.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/exp.h"
#include "kernels/cuda/scratch.h"
#include "kernels/cuda/tensor_product.h"

namespace tandem::kernels::cuda {
namespace {

// As many consecutive routes of one expert, in grouped order, as a block has rows, or fewer.
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
int64_t MostTiles(int64_t routes, int64_t num_experts, int64_t tile_rows) {
  return routes / tile_rows + std::min(routes, num_experts);
}

// One block of threads. `shared`: next[experts], where an expert's next route goes.
__global__ void GroupKernel(int64_t routes, int num_experts, const int32_t* route_experts,
                            int tile_rows, Grouping grouping) {
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
      for (; begin < end; begin = begin + tile_rows < end ? begin + tile_rows : end) {
        grouping.tiles[tiles++] = {expert, begin,
                                   begin + tile_rows < end ? begin + tile_rows : end};
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
__device__ inline bool PlaceRoutes(const Grouping& grouping, int64_t block, TileSize size,
                                   int64_t outputs, Tile* tile) {
  const int64_t output_tiles = TilesOf(outputs, size.outputs);
  const int64_t index = block / output_tiles;
  if (index >= *grouping.num_tiles) return false;
  const RouteTile& routes = grouping.tiles[index];
  *tile = TileAt(size, 0, 0, block % output_tiles, outputs, routes.expert);
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
  // Requires that it is bf16.
  __device__ const Bf16* row(int64_t output) const {
    return static_cast<const Bf16*>(matrix.data) + output * output_stride;
  }
};

// activated = round(silu(round(gate x)) * round(up x)), in grouped order.
template <typename X>
struct GateUpProduct {
  using Row = X;
  using Matrix = ExpertMatrix;
  static constexpr int kMatrices = 2;

  int64_t hidden, intermediate, most_tiles;
  Grouping grouping;
  Rows<const X> x;
  const int32_t* route_rows;
  const ExpertPointers* experts;
  Rows<X> activated;

  int64_t blocks(TileSize size) const { return most_tiles * TilesOf(intermediate, size.outputs); }
  __device__ bool Place(int64_t block, TileSize size, Tile* tile) const {
    return PlaceRoutes(grouping, block, size, intermediate, tile);
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
  using Matrix = ExpertMatrix;
  static constexpr int kMatrices = 1;

  int64_t hidden, intermediate, most_tiles;
  Grouping grouping;
  Rows<const X> activated;
  const ExpertPointers* experts;
  Rows<X> out;

  int64_t blocks(TileSize size) const { return most_tiles * TilesOf(hidden, size.outputs); }
  __device__ bool Place(int64_t block, TileSize size, Tile* tile) const {
    return PlaceRoutes(grouping, block, size, hidden, tile);
  }
  __device__ const X* row(const Tile&, int64_t i) const { return activated[i]; }
  __device__ ExpertMatrix matrix(const Tile& tile, int) const {
    return {experts[tile.batch].down, intermediate};
  }
  __device__ void Store(const Tile&, int64_t i, int64_t n, const float* sums) const {
    out[grouping.order[i]][n] = Round<X>(sums[0]);
  }
};

constexpr int kLeastTileRows = 16;

// The parts of a call's scratch.
struct Scratch {
  Grouping grouping;
  std::byte* activated;
  size_t bytes;

  Scratch(std::byte* memory, int64_t routes, int64_t num_experts, int64_t intermediate, Dtype act) {
    ScratchParts parts(memory);
    grouping.num_tiles = parts.Take<int32_t>(1);
    grouping.tiles = parts.Take<RouteTile>(MostTiles(routes, num_experts, kLeastTileRows));
    grouping.order = parts.Take<int32_t>(routes);
    activated = parts.Take(routes * intermediate * static_cast<int64_t>(DtypeBytes(act)));
    bytes = parts.bytes();
  }
};

}  // namespace

size_t ExpertMlpScratchBytes(int64_t routes, int64_t num_experts, int64_t intermediate, Dtype act) {
  return Scratch(nullptr, routes, num_experts, intermediate, act).bytes;
}

void ExpertMlp(Stream stream, const ExpertMlpTensors& t, SumOrder order, std::byte* scratch) {
  const int64_t routes = t.out.rows(), num_experts = t.experts.rows(), hidden = t.x.width();
  if (routes == 0) return;
  const bool is_tensor = order == SumOrder::kTensor;
  TANDEM_CHECK(!is_tensor || t.x.dtype == Dtype::kBF16);
  // By what an expert has in the mean.
  const BlockRows block_rows = BlockRowsFor((routes + num_experts - 1) / num_experts);
  const int tile_rows = is_tensor ? static_cast<int>(block_rows) : product::kTile;
  const Scratch parts(scratch, routes, num_experts, t.intermediate, t.x.dtype);
  Launch(stream, GroupKernel, 1, kThreads, static_cast<size_t>(num_experts) * sizeof(uint32_t),
         routes, static_cast<int>(num_experts), DataOf<const int32_t>(t.route_experts), tile_rows,
         parts.grouping);
  const int64_t tiles = MostTiles(routes, num_experts, tile_rows);
  const auto* const experts = DataOf<const ExpertPointers>(t.experts);
  WithType(t.x.dtype, [&](auto act) {
    using X = typename decltype(act)::type;
    auto* const activated = reinterpret_cast<X*>(parts.activated);
    const GateUpProduct<X> gate_up = {hidden,
                                      t.intermediate,
                                      tiles,
                                      parts.grouping,
                                      RowsOf<const X>(t.x),
                                      DataOf<const int32_t>(t.route_rows),
                                      experts,
                                      Rows<X>{activated, t.intermediate}};
    const DownProduct<X> down = {
        hidden,  t.intermediate,  tiles, parts.grouping, Rows<const X>{activated, t.intermediate},
        experts, RowsOf<X>(t.out)};
    if constexpr (std::is_same_v<X, Bf16>) {
      if (is_tensor) {
        LaunchTensorProduct(stream, block_rows, hidden, gate_up);
        LaunchTensorProduct(stream, block_rows, t.intermediate, down);
        return;
      }
    }
    LaunchProduct(stream, hidden, gate_up);
    LaunchProduct(stream, t.intermediate, down);
  });
}

}  // namespace tandem::kernels::cuda
