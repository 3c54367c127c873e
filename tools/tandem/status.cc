#include "common/status.h"

#include <google/protobuf/util/json_util.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "client.h"
#include "commands.h"
#include "common/command_line.h"
#include "common/mutex.h"
#include "interrupt.h"
#include "status_view.h"

namespace tandem::tool {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kAnswerLimitS = 10;  // without --timeout
constexpr std::chrono::seconds kPercentilesOver(60);

struct Options {
  ConnectOptions connect;
  StatusViewOptions view;
  bool watch = false;
  double interval_s = 1;
};

absl::StatusOr<std::string> Json(const v1::GetStatusResponse& status) {
  google::protobuf::util::JsonPrintOptions print;
  print.preserve_proto_field_names = true;
  print.always_print_primitive_fields = true;
  std::string json;
  const auto written = google::protobuf::util::MessageToJsonString(status, &json, print);
  if (!written.ok()) return absl::InternalError(written.ToString());
  return absl::StrCat(json, "\n");
}

// Ctrl-C, for those who wait.
class Interrupted {
 public:
  // Whether it came before `duration` was over.
  bool WaitFor(std::chrono::duration<double> duration) {
    MutexLock lock(mutex_);
    return changed_.WaitFor(lock, std::chrono::duration_cast<std::chrono::nanoseconds>(duration),
                            [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return came_; });
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool came_ ABSL_GUARDED_BY(mutex_) = false;
  InterruptScope scope_{[this] {
    {
      MutexLock lock(mutex_);
      came_ = true;
    }
    changed_.NotifyAll();
  }};
};

// Over what was there before, in place.
void Redraw(const std::string& text) {
  winsize size = {};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row == 0) size = {24, 80, 0, 0};
  std::string screen = "\x1b[H";  // to the upper left corner
  for (const char c : FitToScreen(text, size.ws_row, size.ws_col)) {
    if (c == '\n') screen += "\x1b[K";  // what is left of an older line
    screen += c;
  }
  absl::StrAppend(&screen, "\x1b[K\x1b[J");  // and below
  std::fputs(screen.c_str(), stdout);
}

// Goes on when no server answers: it may come back.
absl::Status Watch(Client& client, const Options& options) {
  const bool in_place = isatty(STDOUT_FILENO) == 1 && !options.connect.json;
  Interrupted interrupted;
  struct Answered {
    Clock::time_point asked;
    v1::GetStatusResponse status;
  };
  std::deque<Answered> answers;  // of the last kPercentilesOver, the oldest first
  if (in_place) std::fputs("\x1b[2J", stdout);
  do {
    const Clock::time_point asked = Clock::now();
    absl::StatusOr<v1::GetStatusResponse> status = client.GetStatus(/*placement=*/true);
    std::string text;
    if (!status.ok()) {
      text = absl::StrCat(status.status().message(), "\n");
      answers.clear();
    } else if (options.connect.json) {
      TANDEM_ASSIGN_OR_RETURN(text, Json(*status));
    } else {
      while (answers.size() > 1 && asked - answers[1].asked >= kPercentilesOver) {
        answers.pop_front();
      }
      const bool any = !answers.empty();
      const std::chrono::duration<double> passed =
          asked - (any ? answers.back().asked : Clock::time_point());
      text = StatusText(*status, any ? &answers.back().status : nullptr, passed.count(),
                        options.view, any ? &answers.front().status : nullptr);
      answers.push_back({asked, *std::move(status)});
    }
    if (in_place) {
      Redraw(text);
    } else {
      std::fputs(absl::StrCat(text, options.connect.json ? "" : "\n").c_str(), stdout);
    }
    if (std::fflush(stdout) != 0) return absl::OkStatus();  // nobody reads any more
  } while (!interrupted.WaitFor(std::chrono::duration<double>(options.interval_s)));
  if (in_place) std::fputs("\n", stdout);
  return absl::OkStatus();
}

absl::Status Run(Options options) {
  if (options.connect.timeout_s == 0) options.connect.timeout_s = kAnswerLimitS;
  TANDEM_ASSIGN_OR_RETURN(const auto client, Client::Connect(options.connect));
  if (options.watch) return Watch(*client, options);
  TANDEM_ASSIGN_OR_RETURN(const v1::GetStatusResponse status,
                          client->GetStatus(/*placement=*/true));
  std::string text = StatusText(status, nullptr, 1, options.view);
  if (options.connect.json) {
    TANDEM_ASSIGN_OR_RETURN(text, Json(status));
  }
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace

Command AddStatus(CommandLine& root) {
  auto options = std::make_shared<Options>();
  CommandLine* app = root.AddSubcommand("status", "what the deployment is made of and does");
  app->AddFlag("--counters", options->view.counters, "also print every worker's counters");
  app->AddFlag("--map", options->view.map, "which experts each worker has, instead of how many");
  app->AddFlag("--watch", options->watch,
               "again and again, with rates and the last minute's percentiles, until Ctrl-C: in "
               "place in a terminal, one after the other elsewhere");
  app->AddOption("--interval", options->interval_s, "seconds, with --watch")
      .Range(0.1, 3600.0)
      .ShowDefault();
  options->connect.AddTo(*app);
  return {app, [options] { return Run(*options); }};
}

}  // namespace tandem::tool
