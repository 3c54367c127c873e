#include "common/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace tandem {
namespace {

using testing::ElementsAre;
using testing::Eq;
using testing::Optional;

using Words = std::vector<const char*>;

// The exit code, if the program is to end.
std::optional<int> Parse(CommandLine& app, const Words& words) {
  Words argv = {"program"};
  argv.insert(argv.end(), words.begin(), words.end());
  return app.Parse(static_cast<int>(argv.size()), argv.data());
}

TEST(CommandLineTest, SetsWhatIsGivenAndLeavesTheRest) {
  CommandLine app("test");
  std::string text = "before";
  int32_t port = 1;
  std::optional<double> share;
  std::optional<int64_t> count;
  std::vector<int> ids;
  bool loud = false;
  app.AddOption("text", text);
  const Option port_flag = app.AddOption("-p,--port", port, "where");
  const Option share_flag = app.AddOption("--share", share, "how much");
  app.AddOption("--count", count);
  app.AddOption("--ids", ids).SeparatedBy(',');
  app.AddFlag("--loud", loud, "whether to shout");
  EXPECT_EQ(Parse(app, {"-p", "7", "words", "--ids", "3,1,4", "--loud", "--count", "-9"}),
            std::nullopt);
  EXPECT_EQ(text, "words");
  EXPECT_EQ(port, 7);
  EXPECT_EQ(share, std::nullopt);
  EXPECT_THAT(count, Optional(-9));
  EXPECT_THAT(ids, ElementsAre(3, 1, 4));
  EXPECT_TRUE(loud);
  EXPECT_TRUE(port_flag.given());
  EXPECT_FALSE(share_flag.given());
}

TEST(CommandLineTest, HelpAndVersionEndTheProgramWellAndFaultsWithTwo) {
  CommandLine app("test");
  int port = 1;
  app.AddOption("--port", port);
  app.AddVersionFlag("1.2.3");
  EXPECT_THAT(Parse(app, {"--help"}), Optional(0));
  EXPECT_THAT(Parse(app, {"--version"}), Optional(0));
  for (const Words& fault : {Words{"--nonsense"}, {"more"}, {"--port"}, {"--port", "seven"}}) {
    EXPECT_THAT(Parse(app, fault), Optional(2)) << fault.back();
  }
}

TEST(CommandLineTest, RefusesWhatAnOptionDoesNotAllow) {
  struct Case {
    Words words;
    bool taken;
  };
  for (const Case& c : std::vector<Case>{
           {{"--port", "1"}, true},
           {{"--port", "1024"}, true},
           {{"--port", "0"}, false},
           {{"--port", "1025"}, false},
           {{"--share", "0.25"}, true},
           {{"--share", "1.5"}, false},
           {{"--grace", "0"}, true},
           {{"--grace", "-1"}, false},
           {{"--rate", "1"}, true},
           {{"--rate", "0"}, false},
           {{"--link", "grpc"}, true},
           {{"--link", "pigeon"}, false},
           {{"--config", "/proc/self/stat"}, true},
           {{"--config", "/proc/self/nothing"}, false},
           {{"--rate", "1", "--grace", "1"}, false},
           {{"--rate", "1", "--burst", "2"}, true},
           {{"--burst", "2"}, false},
       }) {
    CommandLine app("test");
    int port = 1;
    double share = 0;
    double grace = 0;
    double rate = 0;
    double burst = 0;
    std::string link;
    std::string config;
    app.AddOption("--port", port).Range(1, 1024);
    app.AddOption("--share", share).Range(0.0, 1.0);
    const Option grace_flag = app.AddOption("--grace", grace).NonNegative();
    const Option rate_flag = app.AddOption("--rate", rate).Positive().Excludes(grace_flag);
    app.AddOption("--burst", burst).Needs(rate_flag);
    app.AddOption("--link", link).OneOf({"auto", "grpc"});
    app.AddOption("--config", config).ExistingFile();
    EXPECT_EQ(Parse(app, c.words).has_value(), !c.taken) << testing::PrintToString(c.words);
  }
}

TEST(CommandLineTest, TakesSizesWithUnits) {
  for (const auto& [text, bytes] : std::vector<std::pair<const char*, int64_t>>{
           {"4096", 4096}, {"3KiB", 3072}, {"2GB", 2LL << 30}}) {
    CommandLine app("test");
    int64_t size = 0;
    app.AddOption("--size", size).ByteSize().Range(int64_t{1}, int64_t{1} << 50);
    EXPECT_EQ(Parse(app, {"--size", text}), std::nullopt) << text;
    EXPECT_EQ(size, bytes) << text;
  }
}

TEST(CommandLineTest, NeedsWhatIsRequired) {
  CommandLine app("test");
  std::string model;
  app.AddOption("--model", model);
  app.Get("--model").Required();
  EXPECT_THAT(Parse(app, {}), Optional(2));
  EXPECT_EQ(Parse(app, {"--model", "dir"}), std::nullopt);
}

TEST(CommandLineTest, AFlagThatTakesOneValueLeavesTheNextWordToAnArgument) {
  CommandLine app("test");
  std::vector<std::string> stop;
  std::string prompt;
  app.AddOption("--stop", stop).OneValueEach();
  app.AddOption("prompt", prompt);
  EXPECT_EQ(Parse(app, {"--stop", "a", "--stop", "b", "text"}), std::nullopt);
  EXPECT_THAT(stop, ElementsAre("a", "b"));
  EXPECT_EQ(prompt, "text");
}

TEST(CommandLineTest, KnowsWhichSubcommandWasGiven) {
  CommandLine app("test");
  app.RequireSubcommand();
  app.TakeFlagsAfterSubcommand();
  bool brief = false;
  int rows = 1;
  app.AddFlag("--brief", brief, "less");
  CommandLine* const serve = app.AddSubcommand("serve", "serves");
  const CommandLine* const plan = app.AddSubcommand("plan", "plans");
  serve->AddOption("--rows", rows);
  EXPECT_THAT(Parse(app, {}), Optional(2));
  EXPECT_EQ(Parse(app, {"serve", "--rows", "5", "--brief"}), std::nullopt);
  EXPECT_TRUE(serve->given());
  EXPECT_FALSE(plan->given());
  EXPECT_EQ(rows, 5);
  EXPECT_TRUE(brief);
}

TEST(CommandLineTest, HelpShowsDefaultsWhereAsked) {
  CommandLine app("test");
  int port = 8470;
  int rows = 64;
  app.AddOption("--port", port, "where").ShowDefault();
  app.AddOption("--rows", rows, "how many").Group("More");
  testing::internal::CaptureStdout();
  EXPECT_THAT(Parse(app, {"--help"}), Optional(0));
  const std::string help = testing::internal::GetCapturedStdout();
  EXPECT_THAT(help, testing::HasSubstr("--port INT=8470"));
  EXPECT_THAT(help, testing::ContainsRegex("More:\n +--rows INT +how many"));
}

}  // namespace
}  // namespace tandem
