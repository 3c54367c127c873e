// A program's flags, arguments and subcommands: what is needed of CLI11, whose headers take the
// compiler as long as all else in a file that includes them. Only command_line.cc does.
#ifndef TANDEM_COMMON_COMMAND_LINE_H_
#define TANDEM_COMMON_COMMAND_LINE_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace tandem {

// A flag or an argument, to say more of it. A handle, valid as long as its CommandLine.
class Option {
 public:
  Option() = default;  // of none: good only to be assigned to

  Option Required();
  Option Excludes(Option other);
  Option Needs(Option other);
  // What is refused otherwise. T is int, int64_t or double.
  template <typename T>
  Option Range(T low, T high);  // both included
  Option NonNegative();
  Option Positive();
  Option OneOf(const std::vector<std::string>& values);
  Option ExistingFile();
  // Takes units as well: 12GiB, or 12GB, which is as many.
  Option ByteSize();
  // Of a vector: its values may come in one word.
  Option SeparatedBy(char delimiter);
  // Of a vector: a value for each time that the flag is given, so that what follows is an argument.
  Option OneValueEach();
  // What --help calls its values.
  Option ValueNames(const std::string& names);
  // --help shows what the variable holds now.
  Option ShowDefault();
  // --help lists it under this title.
  Option Group(const std::string& title);

  bool given() const;  // after Parse

 private:
  friend class CommandLine;
  explicit Option(CLI::Option* option) : option_(option) {}
  CLI::Option* option_ = nullptr;
};

class CommandLine {
 public:
  explicit CommandLine(const std::string& description);
  ~CommandLine();
  CommandLine(const CommandLine&) = delete;
  CommandLine& operator=(const CommandLine&) = delete;

  // A flag with a value if `names` begins with a dash ("-n,--count"), otherwise an argument. Parse
  // sets `variable`, which keeps its value if it is not given. T is bool, int, int64_t, uint32_t,
  // uint64_t, float, double, std::string, or an optional or vector of them, of those that
  // command_line.cc instantiates.
  template <typename T>
  Option AddOption(const std::string& names, T& variable, const std::string& description = "");
  // A flag without a value.
  Option AddFlag(const std::string& name, bool& variable, const std::string& description);
  // The one that was added under this name, which must be.
  Option Get(const std::string& name);

  void AddVersionFlag(const std::string& version);
  // A flag that names a file with values of flags, in TOML.
  void AddConfigFlag(const std::string& name, const std::string& description);

  // This one owns it.
  CommandLine* AddSubcommand(const std::string& name, const std::string& description);
  // Exactly one of the subcommands must be given.
  void RequireSubcommand();
  // This one's flags may also come after a subcommand's.
  void TakeFlagsAfterSubcommand();

  // If the program is to end, after --help or a fault, of which the reader has been told: its exit
  // code, which is 2 for a fault.
  std::optional<int> Parse(int argc, const char* const* argv);
  bool given() const;  // a subcommand, after Parse

 private:
  explicit CommandLine(std::shared_ptr<CLI::App> app);

  std::shared_ptr<CLI::App> app_;
  std::vector<std::unique_ptr<CommandLine>> subcommands_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_COMMAND_LINE_H_
