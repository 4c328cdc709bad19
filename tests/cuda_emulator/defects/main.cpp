// emulator_defects clean | planted NAME RUNS. Exit status: 0 all right, 1 something wrong, 2 usage.
#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" int dsr_run_clean();
extern "C" int dsr_run_planted(const char* name, int runs);

int main(int count, char** arguments) {
  if (count == 2 && std::strcmp(arguments[1], "clean") == 0) return dsr_run_clean() == 0 ? 0 : 1;
  if (count == 4 && std::strcmp(arguments[1], "planted") == 0) {
    return dsr_run_planted(arguments[2], std::atoi(arguments[3])) == 0 ? 0 : 1;
  }
  std::fprintf(stderr, "usage: emulator_defects clean | planted NAME RUNS\n");
  return 2;
}
