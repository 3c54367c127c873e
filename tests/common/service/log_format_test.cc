#include "common/service/log_format.h"

#include <algorithm>
#include <string>

#include "common/log_scope.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "spdlog/spdlog.h"
#include "tests/log_lines.h"

namespace tandem {
namespace {

using ::testing::EndsWith;
using ::testing::MatchesRegex;

TEST(LogFormatTest, TextHasTheFieldsOfAllScopesBehindTheSentence) {
  LogLines lines(MakeTextLogFormatter());
  {
    const LogScope outer(LogFields{{"request_id", "7f31"}});
    {
      const LogScope inner(LogFields{{"layer", 3}});
      spdlog::warn("a sentence");
    }
    spdlog::info("another");
  }
  spdlog::info("the last");
  EXPECT_THAT(lines.Text(),
              MatchesRegex("\\[20..-..-.. ..:..:..\\....\\] \\[tandem\\] \\[warning\\] a sentence "
                           "request_id=7f31 layer=3\n"
                           "\\[.*\\] \\[tandem\\] \\[info\\] another request_id=7f31\n"
                           "\\[.*\\] \\[tandem\\] \\[info\\] the last\n"));
}

TEST(LogFormatTest, JsonIsOneObjectALineWhateverIsInTheSentence) {
  LogLines lines(MakeJsonLogFormatter());
  {
    const LogScope scope(LogFields{{"request_id", "7f31"}, {"total_ms", 12}});
    spdlog::warn("quoted \"so\",\nbroken, and no UTF-8: \xff");
  }
  const std::string text = lines.Text();
  EXPECT_THAT(text, EndsWith("\n"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
  const nlohmann::json json = nlohmann::json::parse(text);
  EXPECT_THAT(json["time"].get<std::string>(), MatchesRegex("20..-..-..T..:..:..\\....Z"));
  EXPECT_EQ(json["level"], "warning");
  EXPECT_EQ(json["message"], "quoted \"so\",\nbroken, and no UTF-8: \xEF\xBF\xBD");
  EXPECT_EQ(json["request_id"], "7f31");
  EXPECT_EQ(json["total_ms"], 12);  // a number
  EXPECT_TRUE(json["thread"].is_number());
}

}  // namespace
}  // namespace tandem
