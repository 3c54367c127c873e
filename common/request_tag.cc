#include "common/request_tag.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace tandem {
namespace {

constexpr size_t kMaxRequestId = 128;
constexpr size_t kTraceparent = 55;  // 2 + 1 + 32 + 1 + 16 + 1 + 2
constexpr size_t kMaxTracestate = 512;
constexpr size_t kMaxTracestateMembers = 32;
constexpr size_t kMaxTracestateKey = 256;
constexpr size_t kMaxTracestateValue = 256;

template <typename Allowed>
bool AllAre(absl::string_view text, const Allowed& allowed) {
  return std::all_of(text.begin(), text.end(), allowed);
}

bool IsLetterOrDigit(char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)); }
bool IsLowerOrDigit(char c) {
  return absl::ascii_islower(static_cast<unsigned char>(c)) ||
         absl::ascii_isdigit(static_cast<unsigned char>(c));
}
bool IsLowerHex(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }
bool IsZero(char c) { return c == '0'; }

// key = one of [a-z0-9], then any of that and _-*/@; value = printable, without , and =, and not
// ending in a space.
bool IsTracestateMember(absl::string_view member) {
  const std::pair<absl::string_view, absl::string_view> key_value =
      absl::StrSplit(member, absl::MaxSplits('=', 1));
  const auto& [key, value] = key_value;
  if (key.empty() || key.size() > kMaxTracestateKey || !IsLowerOrDigit(key[0])) return false;
  if (!AllAre(key, [](char c) { return IsLowerOrDigit(c) || absl::StrContains("_-*/@", c); })) {
    return false;
  }
  return !value.empty() && value.size() <= kMaxTracestateValue && value.back() != ' ' &&
         AllAre(value, [](char c) { return c >= 0x20 && c <= 0x7E && c != ',' && c != '='; });
}

}  // namespace

bool IsRequestId(absl::string_view text) {
  return !text.empty() && text.size() <= kMaxRequestId && AllAre(text, [](char c) {
    return IsLetterOrDigit(c) || absl::StrContains("._:/+=@-", c);
  });
}

std::string NewRequestId() {
  std::random_device device;
  std::string id;
  for (int i = 0; i < 4; ++i) absl::StrAppend(&id, absl::Hex(device(), absl::kZeroPad8));
  return id;
}

bool IsTraceparent(absl::string_view text) {
  if (text.size() < kTraceparent) return false;
  const absl::string_view version = text.substr(0, 2);
  const absl::string_view trace_id = text.substr(3, 32);
  const absl::string_view parent_id = text.substr(36, 16);
  const absl::string_view flags = text.substr(53, 2);
  if (text[2] != '-' || text[35] != '-' || text[52] != '-') return false;
  for (const absl::string_view part : {version, trace_id, parent_id, flags}) {
    if (!AllAre(part, IsLowerHex)) return false;
  }
  if (AllAre(trace_id, IsZero) || AllAre(parent_id, IsZero) || version == "ff") return false;
  if (text.size() == kTraceparent) return true;
  // A later version may have more behind it.
  return version != "00" && text[kTraceparent] == '-' && text.size() <= kMaxTracestate &&
         AllAre(text, [](char c) { return c > 0x20 && c <= 0x7E; });
}

absl::string_view TraceIdOf(absl::string_view traceparent) { return traceparent.substr(3, 32); }

bool IsSampled(absl::string_view traceparent) {
  const char low = traceparent[54];
  return ((low <= '9' ? low - '0' : low - 'a' + 10) & 1) != 0;
}

bool IsTracestate(absl::string_view text) {
  if (text.empty() || text.size() > kMaxTracestate) return false;
  size_t members = 0;
  for (absl::string_view member : absl::StrSplit(text, ',')) {
    while (!member.empty() && (member.front() == ' ' || member.front() == '\t')) {
      member.remove_prefix(1);
    }
    while (!member.empty() && (member.back() == ' ' || member.back() == '\t')) {
      member.remove_suffix(1);
    }
    if (member.empty()) continue;  // allowed
    if (!IsTracestateMember(member) || ++members > kMaxTracestateMembers) return false;
  }
  return members > 0;
}

RequestTag Sanitized(RequestTag tag) {
  if (!IsRequestId(tag.request_id)) tag.request_id.clear();
  if (!IsTraceparent(tag.traceparent)) tag.traceparent.clear();
  if (tag.traceparent.empty() || !IsTracestate(tag.tracestate)) tag.tracestate.clear();
  return tag;
}

LogFields FieldsOf(const RequestTag& tag) {
  LogFields fields;
  if (!tag.request_id.empty()) fields.emplace_back("request_id", tag.request_id);
  if (!tag.traceparent.empty())
    fields.emplace_back("trace_id", std::string(TraceIdOf(tag.traceparent)));
  return fields;
}

LogFields FieldsOf(const std::vector<const RequestTag*>& tags) {
  LogFields fields = FieldsOf(ChooseTraces(tags));
  std::vector<absl::string_view> ids;
  for (const RequestTag* tag : tags) {
    if (ids.size() == kMaxTraces) break;
    if (!tag->request_id.empty()) ids.push_back(tag->request_id);
  }
  if (!ids.empty()) fields.emplace(fields.begin(), "request_id", absl::StrJoin(ids, ","));
  return fields;
}

TracesOfPart ChooseTraces(const std::vector<const RequestTag*>& tags) {
  std::vector<std::string> chosen;
  for (const bool sampled : {true, false}) {
    for (const RequestTag* tag : tags) {
      const std::string& traceparent = tag->traceparent;
      if (chosen.size() == kMaxTraces) break;
      if (traceparent.empty() || IsSampled(traceparent) != sampled) continue;
      if (std::find(chosen.begin(), chosen.end(), traceparent) == chosen.end()) {
        chosen.push_back(traceparent);
      }
    }
  }
  if (chosen.empty()) return nullptr;
  return std::make_shared<const std::vector<std::string>>(std::move(chosen));
}

LogFields FieldsOf(const TracesOfPart& traces) {
  if (traces == nullptr) return {};
  const auto append_id = [](std::string* out, const std::string& traceparent) {
    absl::StrAppend(out, TraceIdOf(traceparent));
  };
  return {{"trace_id", absl::StrJoin(*traces, ",", append_id)}};
}

}  // namespace tandem
