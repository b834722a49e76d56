/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <new>
#include <vector>

namespace fvd::sim {

Shared* make_shared_counters() {
    void* memory =
        mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        std::perror("fvd-sim: mmap");
        std::exit(2);
    }
    return new (memory) Shared;
}

bool run_jobs(unsigned jobs, Shared& shared, const std::function<void(unsigned)>& work,
              const std::function<void(unsigned job, int signal)>& crashed) {
    std::fflush(nullptr);
    std::vector<pid_t> children;
    for (unsigned job = 0; job < jobs; job++) {
        const pid_t pid = fork();
        if (pid < 0) {
            std::perror("fvd-sim: fork");
            std::exit(2);
        }
        if (pid == 0) {
            work(job);
            std::fflush(nullptr);
            _exit(0);
        }
        children.push_back(pid);
    }
    bool fine = true;
    for (unsigned job = 0; job < jobs; job++) {
        int status = 0;
        if (waitpid(children[job], &status, 0) < 0 || !WIFEXITED(status) ||
            WEXITSTATUS(status) != 0) {
            fine = false;
            shared.stop = true;
            shared.failures++;
            crashed(job, WIFSIGNALED(status) ? WTERMSIG(status) : 0);
        }
    }
    return fine;
}

}  // namespace fvd::sim
