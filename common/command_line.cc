#include "common/command_line.h"

#include <cstdint>
#include <utility>

#include "CLI/CLI.hpp"

namespace tandem {

Option Option::Required() {
  option_->required();
  return *this;
}

Option Option::Excludes(Option other) {
  option_->excludes(other.option_);
  return *this;
}

Option Option::Needs(Option other) {
  option_->needs(other.option_);
  return *this;
}

template <typename T>
Option Option::Range(T low, T high) {
  option_->check(CLI::Range(low, high));
  return *this;
}

Option Option::NonNegative() {
  option_->check(CLI::NonNegativeNumber);
  return *this;
}

Option Option::Positive() {
  option_->check(CLI::PositiveNumber);
  return *this;
}

Option Option::OneOf(const std::vector<std::string>& values) {
  option_->check(CLI::IsMember(values));
  return *this;
}

Option Option::ExistingFile() {
  option_->check(CLI::ExistingFile);
  return *this;
}

Option Option::ByteSize() {
  option_->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  return *this;
}

Option Option::SeparatedBy(char delimiter) {
  option_->delimiter(delimiter);
  return *this;
}

Option Option::OneValueEach() {
  option_->allow_extra_args(false);
  return *this;
}

Option Option::ValueNames(const std::string& names) {
  option_->type_name(names);
  return *this;
}

Option Option::ShowDefault() {
  option_->capture_default_str();
  return *this;
}

Option Option::Group(const std::string& title) {
  option_->group(title);
  return *this;
}

bool Option::given() const { return option_->count() > 0; }

CommandLine::CommandLine(const std::string& description)
    : app_(std::make_shared<CLI::App>(description)) {}

CommandLine::CommandLine(std::shared_ptr<CLI::App> app) : app_(std::move(app)) {}

CommandLine::~CommandLine() = default;

template <typename T>
Option CommandLine::AddOption(const std::string& names, T& variable,
                              const std::string& description) {
  return Option(app_->add_option(names, variable, description));
}

Option CommandLine::AddFlag(const std::string& name, bool& variable,
                            const std::string& description) {
  return Option(app_->add_flag(name, variable, description));
}

Option CommandLine::Get(const std::string& name) { return Option(app_->get_option(name)); }

void CommandLine::AddVersionFlag(const std::string& version) {
  app_->set_version_flag("--version", version);
}

void CommandLine::AddConfigFlag(const std::string& name, const std::string& description) {
  app_->set_config(name, "", description);
}

CommandLine* CommandLine::AddSubcommand(const std::string& name, const std::string& description) {
  CLI::App* const app = app_->add_subcommand(name, description);
  subcommands_.push_back(
      std::unique_ptr<CommandLine>(new CommandLine(app_->get_subcommand_ptr(app))));
  return subcommands_.back().get();
}

void CommandLine::RequireSubcommand() { app_->require_subcommand(1); }

void CommandLine::TakeFlagsAfterSubcommand() { app_->fallthrough(); }

std::optional<int> CommandLine::Parse(int argc, const char* const* argv) {
  try {  // CLI11 reports by exceptions; none leaves this function
    app_->parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app_->exit(error) == 0 ? 0 : 2;
  }
  return std::nullopt;
}

bool CommandLine::given() const { return app_->parsed(); }

// Every type of an option, and of a range.
template Option CommandLine::AddOption(const std::string&, bool&, const std::string&);
template Option CommandLine::AddOption(const std::string&, int&, const std::string&);
template Option CommandLine::AddOption(const std::string&, int64_t&, const std::string&);
template Option CommandLine::AddOption(const std::string&, uint32_t&, const std::string&);
template Option CommandLine::AddOption(const std::string&, uint64_t&, const std::string&);
template Option CommandLine::AddOption(const std::string&, float&, const std::string&);
template Option CommandLine::AddOption(const std::string&, double&, const std::string&);
template Option CommandLine::AddOption(const std::string&, std::string&, const std::string&);
template Option CommandLine::AddOption(const std::string&, std::optional<bool>&,
                                       const std::string&);
template Option CommandLine::AddOption(const std::string&, std::optional<float>&,
                                       const std::string&);
template Option CommandLine::AddOption(const std::string&, std::optional<uint32_t>&,
                                       const std::string&);
template Option CommandLine::AddOption(const std::string&, std::optional<int64_t>&,
                                       const std::string&);
template Option CommandLine::AddOption(const std::string&, std::optional<uint64_t>&,
                                       const std::string&);
template Option CommandLine::AddOption(const std::string&, std::optional<double>&,
                                       const std::string&);
template Option CommandLine::AddOption(const std::string&, std::vector<int>&, const std::string&);
template Option CommandLine::AddOption(const std::string&, std::vector<uint32_t>&,
                                       const std::string&);
template Option CommandLine::AddOption(const std::string&, std::vector<std::string>&,
                                       const std::string&);
template Option CommandLine::AddOption(const std::string&, std::vector<std::pair<int32_t, float>>&,
                                       const std::string&);
template Option Option::Range(int, int);
template Option Option::Range(int64_t, int64_t);
template Option Option::Range(double, double);

}  // namespace tandem
