#include "common/tokenizer/regex.h"

#include <oniguruma.h>

#include <cstddef>

#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "common/tokenizer/utf8.h"

namespace tandem {
namespace {

// Bounds the time of one search against patterns that backtrack without end (about a second).
constexpr unsigned long kMaxRetriesPerSearch = 100'000'000;

// Oniguruma compiles on one thread at a time only.
Mutex& CompileMutex() {
  static Mutex* const mutex = [] {
    OnigEncoding encodings[] = {ONIG_ENCODING_UTF8};
    onig_initialize(encodings, 1);
    onig_set_retry_limit_in_search(kMaxRetriesPerSearch);
    return new Mutex;
  }();
  return *mutex;
}

std::string ErrorText(int code, OnigErrorInfo* info = nullptr) {
  UChar message[ONIG_MAX_ERROR_MESSAGE_LEN];
  const int length = onig_error_code_to_str(message, code, info);
  return std::string(reinterpret_cast<const char*>(message), length);
}

const UChar* Chars(const char* text) { return reinterpret_cast<const UChar*>(text); }

struct RegionDeleter {
  void operator()(OnigRegion* region) const { onig_region_free(region, 1); }
};

}  // namespace

void Regex::Deleter::operator()(re_pattern_buffer* regex) const { onig_free(regex); }

absl::StatusOr<Regex> Regex::Compile(absl::string_view pattern) {
  MutexLock lock(CompileMutex());
  regex_t* regex = nullptr;
  OnigErrorInfo info;
  const int code = onig_new(&regex, Chars(pattern.data()), Chars(pattern.data() + pattern.size()),
                            ONIG_OPTION_NONE, ONIG_ENCODING_UTF8, ONIG_SYNTAX_RUBY, &info);
  if (code != ONIG_NORMAL) {
    return absl::InvalidArgumentError(
        absl::StrCat("the regex \"", pattern, "\" does not compile: ", ErrorText(code, &info)));
  }
  return Regex(regex);
}

absl::Status Regex::FindAll(absl::string_view text, std::vector<TextRange>* matches,
                            StopCheck* stop) const {
  matches->clear();
  std::unique_ptr<OnigRegion, RegionDeleter> region(onig_region_new());
  const UChar* const begin = Chars(text.data());
  const UChar* const end = begin + text.size();
  size_t start = 0;
  while (start <= text.size()) {
    const int found =
        onig_search(regex_.get(), begin, end, begin + start, end, region.get(), ONIG_OPTION_NONE);
    if (found == ONIG_MISMATCH) break;
    if (found < 0) {
      return absl::InternalError(absl::StrCat("the regex search failed: ", ErrorText(found)));
    }
    const TextRange match = {static_cast<uint32_t>(region->beg[0]),
                             static_cast<uint32_t>(region->end[0])};
    if (match.begin == match.end && !matches->empty() && matches->back().end == match.end) {
      if (start == text.size()) break;
      NextCodePoint(text, &start);
      continue;
    }
    matches->push_back(match);
    if (Stops(stop, match.end - start)) return stop->status();
    start = match.end;
  }
  return absl::OkStatus();
}

}  // namespace tandem
