// Broken invariants end the process with a message: the orchestrator restarts it, and nothing goes
// on computing with a state that cannot be. Never for bad input: that is absl::Status.
#ifndef TANDEM_COMMON_CHECK_H_
#define TANDEM_COMMON_CHECK_H_

#include <cstdio>
#include <cstdlib>

#define TANDEM_CHECK(condition)                                                              \
  do {                                                                                       \
    if (!(condition)) {                                                                      \
      std::fprintf(stderr, "%s:%d: broken invariant: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                          \
    }                                                                                        \
  } while (false)

#endif  // TANDEM_COMMON_CHECK_H_
