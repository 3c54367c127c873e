// Reports as lines of a table and of a CSV file.
#ifndef TANDEM_TOOLS_SIMULATE_REPORT_H_
#define TANDEM_TOOLS_SIMULATE_REPORT_H_

#include <string>

#include "tools/simulate/simulation.h"

namespace tandem::simulate {

std::string TableHeader();
std::string TableLine(const SimulationOptions& options, const SimulationReport& report);
std::string CsvHeader();
std::string CsvLine(const SimulationOptions& options, const SimulationReport& report);

}  // namespace tandem::simulate

#endif  // TANDEM_TOOLS_SIMULATE_REPORT_H_
