// Shorthands for functions that return absl::Status or absl::StatusOr.
#ifndef TANDEM_COMMON_STATUS_H_
#define TANDEM_COMMON_STATUS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the enclosing function if `expr` is an error.
#define TANDEM_RETURN_IF_ERROR(expr)                                                    \
  do {                                                                                  \
    if (absl::Status tandem_status = (expr); !tandem_status.ok()) return tandem_status; \
  } while (false)

// TANDEM_ASSIGN_OR_RETURN(auto x, F()): x = *F(), or returns F's error.
#define TANDEM_ASSIGN_OR_RETURN(lhs, expr) \
  TANDEM_ASSIGN_OR_RETURN_IMPL_(TANDEM_CONCAT_(tandem_or_, __LINE__), lhs, expr)
#define TANDEM_ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                                  \
  if (!tmp.ok()) return std::move(tmp).status();      \
  lhs = *std::move(tmp)
#define TANDEM_CONCAT_(a, b) TANDEM_CONCAT_IMPL_(a, b)
#define TANDEM_CONCAT_IMPL_(a, b) a##b

#endif  // TANDEM_COMMON_STATUS_H_
