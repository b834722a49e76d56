/* SPDX-License-Identifier: GPL-2.0-or-later */
/* fvd-sim: the same core in a world that lies, stalls and dies. docs/testing.md tells how to use
 * it. */
#include <malloc.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "campaign.h"
#include "fvd/base/plant.h"

namespace {

using namespace fvd::sim;

struct PlantInfo {
    const char* name;
    const char* what;
    fvd::plant::Name id;
};
constexpr PlantInfo kPlants[] = {
#define FVD_PLANT_INFO(name, what) {#name, what, fvd::plant::Name::name},
    FVD_PLANTS(FVD_PLANT_INFO)
#undef FVD_PLANT_INFO
};

constexpr char kHelp[] =
    "Usage: fvd-sim [options]\n"
    "Runs the core in simulated worlds, cuts their power at every moment, and judges what is "
    "left.\n"
    "\n"
    "  --seed N        first random history (default 1)\n"
    "  --seconds S     stop after so many seconds\n"
    "  --states N      stop after so many power-cut states\n"
    "  --histories H   stop after so many random histories, all small worlds and all scenarios\n"
    "  --jobs N        processes (default: one a processor)\n"
    "  --only KIND     swarm, small, four, loops, damage or create: nothing else\n"
    "  --replay        run the one history that --seed (and --only) names; a line an event\n"
    "  --from FILE     run the history in FILE, as a failure's report prints it\n"
    "  --quiet         with --replay or --from: no lines for events\n"
    "  --shrink        try harder to make a failing history short\n"
    "  --no-shrink     do not try\n"
    "  --list-plants   names of the planted bugs, one a line\n"
    "  --plant NAME    plant a bug first\n";

struct Command {
    CampaignOptions campaign;
    bool replay = false;
    bool quiet = false;
    bool limited = false;
    std::string from;
};

[[noreturn]] void usage(const char* problem, const char* what) {
    std::fprintf(stderr, "fvd-sim: %s%s\n%s", problem, what, kHelp);
    std::exit(2);
}

uint64_t number(const char* text) {
    char* end = nullptr;
    const uint64_t value = std::strtoull(text, &end, 10);
    if (end == text || *end != '\0') {
        usage("not a number: ", text);
    }
    return value;
}

void plant(const char* name) {
    for (const PlantInfo& info : kPlants) {
        if (std::strcmp(info.name, name) == 0) {
            fvd::plant::active = info.id;
            return;
        }
    }
    usage("no such plant: ", name);
}

/* True when the option was one that takes a value. */
bool parse_valued(Command& command, const std::string& option, const char* value) {
    if (option == "--seed") {
        command.campaign.seed = number(value);
    } else if (option == "--seconds") {
        command.campaign.seconds = number(value);
        command.limited = true;
    } else if (option == "--states") {
        command.campaign.states = number(value);
        command.limited = true;
    } else if (option == "--histories") {
        command.campaign.histories = number(value);
        command.limited = true;
    } else if (option == "--jobs") {
        command.campaign.jobs =
            static_cast<unsigned>(std::min<uint64_t>(std::max<uint64_t>(number(value), 1), 64));
    } else if (option == "--only") {
        command.campaign.only = value;
    } else if (option == "--from") {
        command.from = value;
    } else if (option == "--plant") {
        plant(value);
    } else {
        return false;
    }
    return true;
}

Command parse(int argc, char** argv) {
    Command command;
    const long processors = sysconf(_SC_NPROCESSORS_ONLN);
    command.campaign.jobs = processors > 0 ? static_cast<unsigned>(processors) : 1;
    for (int i = 1; i < argc; i++) {
        const std::string option = argv[i];
        if (option == "--replay") {
            command.replay = true;
        } else if (option == "--quiet") {
            command.quiet = true;
        } else if (option == "--shrink") {
            command.campaign.shrink_runs = 3000;
        } else if (option == "--no-shrink") {
            command.campaign.shrink_runs = 0;
        } else if (option == "--list-plants") {
            for (const PlantInfo& info : kPlants) {
                std::printf("%s\n", info.name);
            }
            std::exit(0);
        } else if (option == "--help") {
            std::fputs(kHelp, stdout);
            std::exit(0);
        } else if (i + 1 == argc || !parse_valued(command, option, argv[i + 1])) {
            usage("not understood: ", argv[i]);
        } else {
            i++;
        }
    }
    if (!command.limited) {
        command.campaign.seconds = 60;
    }
    return command;
}

int finish(const std::optional<Violation>& violation, uint64_t trace,
           const CrashExplorer& explorer) {
    if (violation) {
        std::printf("BROKEN PROMISE %s\n  %s\n", violation->promise.c_str(),
                    violation->text.c_str());
    }
    std::printf("trace: %016" PRIx64 "\n", trace);
    std::printf("power-cut states: %" PRIu64 "\n", explorer.stats().states);
    return violation ? 1 : 0;
}

int replay_file(const Command& command) {
    std::ifstream file(command.from);
    std::stringstream text;
    text << file.rdbuf();
    History history;
    std::string error;
    if (!file || !History::parse(text.str(), &history, &error)) {
        std::fprintf(stderr, "fvd-sim: %s is not a history: %s\n", command.from.c_str(),
                     error.c_str());
        return 2;
    }
    CrashExplorer explorer;
    WorldOptions options;
    options.log = command.quiet ? nullptr : stdout;
    World world(history, explorer, options);
    const Outcome outcome = world.run();
    return finish(outcome.violation, outcome.trace, explorer);
}

int replay_seed(const Command& command) {
    const std::string& only = command.campaign.only;
    Piece piece;
    piece.index = command.campaign.seed;
    piece.kind = only == "small"    ? PieceKind::small
                 : only == "four"   ? PieceKind::four
                 : only == "loops"  ? PieceKind::loop
                 : only == "damage" ? PieceKind::damage
                 : only == "create" ? PieceKind::create
                                    : PieceKind::swarm;
    CrashExplorer explorer;
    const PieceOutcome outcome = run_piece(piece, explorer, command.quiet ? nullptr : stdout);
    return finish(outcome.violation, outcome.trace, explorer);
}

}  // namespace

int main(int argc, char** argv) {
    /* Worlds come and go by the thousand; their disks must not be mapped and unmapped each time. */
    mallopt(M_MMAP_THRESHOLD, 64 << 20);
    mallopt(M_TRIM_THRESHOLD, 512 << 20);
    const Command command = parse(argc, argv);
    if (!command.from.empty()) {
        return replay_file(command);
    }
    return command.replay ? replay_seed(command) : run_campaign(command.campaign);
}
