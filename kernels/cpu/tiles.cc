#include "kernels/cpu/tiles.h"

#include <asm/prctl.h>
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace tandem::kernels::cpu {

bool HasTiles(TileType type) {
  constexpr unsigned int kAmxBF16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  unsigned int a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d & kAmxTile) == 0) return false;
  if ((d & (type == TileType::kBF16 ? kAmxBF16 : kAmxInt8)) == 0) return false;
  // A process asks the system once for the tiles' registers.
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, kTileData) == 0;
}

}  // namespace tandem::kernels::cpu
