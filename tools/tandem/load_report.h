// What a load of many requests came to.
#ifndef TANDEM_TOOLS_TANDEM_LOAD_REPORT_H_
#define TANDEM_TOOLS_TANDEM_LOAD_REPORT_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"
#include "proto/inference.pb.h"
#include "tools/workload/summary.h"

namespace tandem::tool {

// One request and its answer. Times in seconds from the beginning of the load.
struct LoadRecord {
  uint32_t prompt_tokens = 0;  // that were sent
  uint32_t max_tokens = 0;     // all of which are wanted: end-of-sequence ids do not end it
  bool measured = false;       // not of the warm-up
  double due_s = 0;            // when it was to be sent; what is waited for begins here
  double end_s = 0;
  std::vector<double> token_s;  // when each token came

  int num_started = 0;
  int num_finished = 0;
  bool in_order = true;  // Started, Chunks, Finished
  v1::GenerateResponse::Started started;
  v1::GenerateResponse::Finished finished;
  absl::Status status;

  // What the stream brought, in its order.
  void Take(const v1::GenerateResponse& response, double now_s);
};

// OK if the answer is whole: it began, ended, has as many tokens as were asked for and says so.
// Otherwise what is wrong with it: the call's status if that is not OK, else DATA_LOSS.
absl::Status CheckComplete(const LoadRecord& record);

struct LoadReport {
  int64_t sent = 0;                       // in all, warm-up included
  int64_t complete = 0;                   // of the measured ones, as all below
  int64_t refused = 0;                    // RESOURCE_EXHAUSTED
  int64_t failed = 0;                     // anything else but complete
  std::map<std::string, int64_t> errors;  // why, the most frequent words of it
  double seconds = 0;  // from when the first measured one was due to the last one's end
  double requests_per_s = 0;
  double prompt_tokens_per_s = 0;
  double tokens_per_s = 0;
  // Milliseconds, of complete answers.
  Summary first_token;     // TTFT: from when it was due
  Summary between_tokens;  // ITL: each gap between chunks that brought tokens
  Summary per_token;       // TPOT: of each answer, the mean time from token to token
  Summary whole;           // from when it was due to its end
};

LoadReport Report(const std::vector<LoadRecord>& records);
std::string ToText(const LoadReport& report);
nlohmann::json ToJson(const LoadReport& report);

}  // namespace tandem::tool

#endif  // TANDEM_TOOLS_TANDEM_LOAD_REPORT_H_
