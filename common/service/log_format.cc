#include "common/service/log_format.h"

#include <ctime>
#include <string>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/log_scope.h"
#include "nlohmann/json.hpp"
#include "spdlog/pattern_formatter.h"

namespace tandem {
namespace {

// The fields of LogScope, each behind a space.
class FieldsFlag : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg&, const std::tm&, spdlog::memory_buf_t& to) override {
    for (const auto& [key, value] : LogScope::Current()) {
      const auto text = [](const auto& v) { return absl::StrCat(v); };
      const std::string field = absl::StrCat(" ", key, "=", std::visit(text, value));
      to.append(field.data(), field.data() + field.size());
    }
  }
  std::unique_ptr<custom_flag_formatter> clone() const override {
    return std::make_unique<FieldsFlag>();
  }
};

class JsonFormatter : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& line, spdlog::memory_buf_t& to) override {
    const auto view = [](spdlog::string_view_t text) {
      return std::string(text.data(), text.size());
    };
    nlohmann::ordered_json json;
    json["time"] =
        absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::FromChrono(line.time), absl::UTCTimeZone());
    json["level"] = view(spdlog::level::to_string_view(line.level));
    json["thread"] = line.thread_id;
    json["message"] = view(line.payload);
    for (const auto& [key, value] : LogScope::Current()) {
      std::visit([&, name = key](const auto& v) { json[name] = v; }, value);
    }
    const std::string text =
        json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
    to.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>();
  }
};

}  // namespace

std::unique_ptr<spdlog::formatter> MakeTextLogFormatter() {
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<FieldsFlag>('*').set_pattern("[%Y-%m-%d %H:%M:%S.%e] [%n] [%^%l%$] %v%*");
  return formatter;
}

std::unique_ptr<spdlog::formatter> MakeJsonLogFormatter() {
  return std::make_unique<JsonFormatter>();
}

}  // namespace tandem
