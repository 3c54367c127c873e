// Pages of the latent cache, as the scheduler counts them and the attention worker fills them.
#ifndef TANDEM_COMMON_PAGES_H_
#define TANDEM_COMMON_PAGES_H_

#include <cstdint>

namespace tandem {

// Tokens in a page.
inline constexpr int kPageTokens = 64;

// Pages that `tokens` tokens fill, the last one maybe in part.
constexpr int64_t PagesFor(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

}  // namespace tandem

#endif  // TANDEM_COMMON_PAGES_H_
