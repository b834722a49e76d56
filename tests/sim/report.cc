/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A failure in words: seed, short history, its events, and the promise that was broken. */
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "campaign.h"
#include "shrink.h"

namespace fvd::sim {

/* In a process of its own: the core may crash, and what it leaks is gone. */
std::string promise_broken_by(const History& history, const WorldOptions& options) {
    int ends[2];
    if (pipe(ends) != 0) {
        return "";
    }
    std::fflush(nullptr);
    const pid_t pid = fork();
    if (pid == 0) {
        if (std::freopen("/dev/null", "w", stderr) == nullptr) {
            _exit(3);
        }
        alarm(20); /* an endless loop is a broken promise too */
        CrashExplorer explorer;
        World world(history, explorer, options);
        const Outcome run = world.run();
        const std::string promise = run.violation ? run.violation->promise : "";
        if (write(ends[1], promise.data(), promise.size()) < 0) {
            _exit(3);
        }
        _exit(0);
    }
    close(ends[1]);
    char promise[16] = {};
    const ssize_t got = read(ends[0], promise, sizeof(promise) - 1);
    close(ends[0]);
    int status = 0;
    waitpid(pid, &status, 0);
    if (!WIFEXITED(status)) {
        return "P8";
    }
    return got > 0 ? promise : "";
}

void report_failure(const Piece& piece, const PieceOutcome& outcome, size_t shrink_runs) {
    std::printf("\nBROKEN PROMISE %s\n  %s\n  found by: fvd-sim %s\n",
                outcome.violation->promise.c_str(), outcome.violation->text.c_str(),
                piece.name().c_str());
    std::fflush(stdout);
    if (outcome.history.ops.empty() || piece.kind == PieceKind::damage) {
        return;
    }
    const std::string promise = outcome.violation->promise;
    const auto still = [&](const History& history) {
        return promise_broken_by(history, outcome.options) == promise;
    };
    const History shorter =
        shrink_runs == 0 ? outcome.history : shrink(outcome.history, still, shrink_runs);
    std::printf("\n--- history, %zu of %zu operations (save it and use --from FILE) ---\n%s",
                shorter.ops.size(), outcome.history.ops.size(), shorter.to_text().c_str());
    if (outcome.options.first_fault) {
        const FaultRule& fault = *outcome.options.first_fault;
        std::printf("# with a fault armed: calls=%x skip=%llu errno=%d%s\n", fault.calls,
                    static_cast<unsigned long long>(fault.skip), fault.error,
                    fault.forever ? " for ever" : "");
    }
    std::printf("--- events ---\n");
    std::fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) {
        alarm(20);
        CrashExplorer explorer;
        WorldOptions options = outcome.options;
        options.log = stdout;
        World world(shorter, explorer, options);
        (void)world.run();
        std::fflush(stdout);
        _exit(0);
    }
    waitpid(pid, nullptr, 0);
    std::printf("\n");
}

}  // namespace fvd::sim
