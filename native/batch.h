// A step as Python says it: the arrays of octavo.backends.protocol.

#pragma once

#include <nanobind/nanobind.h>

#include "plan.h"

namespace octavo {

// Runs octavo.backends.protocol.Batch `batch` with the GIL released and fills StepResult `result`, whose tokens are the
// targets before. `masks_written`: None, or what is called before sampling and returns when the masks are there.
// Throws std::invalid_argument and std::out_of_range for arrays that do not fit.
void run_batch(Plan& plan, nanobind::handle batch, nanobind::handle result, nanobind::object masks_written);

}  // namespace octavo
