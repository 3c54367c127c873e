// Memory for what is large and stays, such as weights.
#ifndef TANDEM_COMMON_HUGE_MEMORY_H_
#define TANDEM_COMMON_HUGE_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>

namespace tandem {

// New zeroed memory of `bytes` > 0. It begins at a huge page, and is in huge pages where the system
// has them. Null: the system does not have so much.
std::shared_ptr<std::byte> NewHugeMemory(int64_t bytes);

}  // namespace tandem

#endif  // TANDEM_COMMON_HUGE_MEMORY_H_
