// What is wrong with a deployment, by what it says of itself: `tandem doctor`.
#ifndef TANDEM_TOOLS_TANDEM_DIAGNOSIS_H_
#define TANDEM_TOOLS_TANDEM_DIAGNOSIS_H_

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "proto/inference.pb.h"

namespace tandem::tool {

enum class Verdict {
  kFine,
  kNote,   // works, but is not as it should be
  kWrong,  // answers fail, wait, or cannot be trusted
};
const char* VerdictName(Verdict verdict);  // "fine", "note", "wrong"

// One line: what was looked at, what was found, and, unless all is fine, what to do.
struct Finding {
  Verdict verdict = Verdict::kFine;
  std::string check;  // "versions", "clock", ...
  std::string what;
  std::string advice;
};

struct Observation {
  v1::GetStatusResponse status;
  std::string digest;  // of the gateway's checkpoint; empty: not known yet
  std::string build;   // version of the tool
  absl::Time asked;    // of this machine's clock, when the question went out
  absl::Time answered;
};

// Each check once at least, in a fixed order. Pure.
std::vector<Finding> Diagnose(const Observation& observation);

}  // namespace tandem::tool

#endif  // TANDEM_TOOLS_TANDEM_DIAGNOSIS_H_
