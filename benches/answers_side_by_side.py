"""Speed of prompts and answers beside llama.cpp: `burnish generate`, the wheel xllamacpp (PyPI) and the build of node-llama-cpp (npm).

    python benches/answers_side_by_side.py MODEL.gguf [--burnish target/release/burnish] [--node FOLDER] [--threads 2]
        [--prompt 64] [--answer 128] [--rounds 5]

Each measurement is a process of its own, the tools alternate, and the medians and ratios are printed. FOLDER is where
`npm install node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1` was run; without it that row is left out. burnish samples at
temperature 0.7 from the seed of the round, since greedy answers of a small model repeat themselves and are then guessed ahead (the
prompt is text without repetitions); llama.cpp answers greedily, which costs it least. Every tool says itself how long prompt and
answer took, loading left out.
"""

import argparse
import statistics
import sys
from pathlib import Path

from runs import measured_by

WHEEL = """
import json, sys, xllamacpp
model, threads, prompt_tokens, answer_tokens, text = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
options = xllamacpp.CommonParams()
options.model.path, options.n_ctx, options.n_parallel = model, prompt_tokens + answer_tokens + 64, 1
options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(options)
request = {"prompt": text, "n_predict": answer_tokens, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
for _ in range(2):
    timings = server.handle_completions(request)["timings"]
print(json.dumps([timings["prompt_per_second"], timings["predicted_per_second"]]))
"""

NODE = """
import { getLlama, LlamaLogLevel } from "node-llama-cpp";
const [modelPath, threads, promptTokens, answerTokens, text] = process.argv.slice(2);
const llama = await getLlama({ gpu: false, logLevel: LlamaLogLevel.error, build: "never", maxThreads: Number(threads) });
const model = await llama.loadModel({ modelPath });
const contextSize = Number(promptTokens) + Number(answerTokens) + 64;
const context = await model.createContext({ contextSize, batchSize: 2048, threads: Number(threads) });
const sequence = context.getSequence();
const ids = model.tokenize(text);
let speeds;
for (let pass = 0; pass < 2; pass++) {
  await sequence.clearHistory();
  let start = performance.now();
  await sequence.evaluateWithoutGeneratingNewTokens(ids.slice(0, -1));
  const prompt = (ids.length - 1) / (performance.now() - start) * 1000;
  let count = 0;
  start = performance.now();
  for await (const _ of sequence.evaluate([ids.at(-1)], { temperature: 0 })) if (++count >= Number(answerTokens)) break;
  speeds = [prompt, count / (performance.now() - start) * 1000];
}
console.log(JSON.stringify(speeds));
process.exit(0);
"""

# Words whose order does not repeat: a linear congruential generator picks them.
WORDS = (
    "the a of to and in farm wool milk grain field year price trade river town ship king road wall winter council paper law "
    "school bread stone letter doctor market bridge garden music story engine copper island forest harvest cattle salt glass "
    "north south early late small large new old often never under over between because while after before made found lost kept"
).split()


def text_of(words):
    state, picked = 7, []
    for _ in range(words):
        state = (state * 1103515245 + 12345) % 2**31
        picked.append(WORDS[(state >> 12) % len(WORDS)])
    return " ".join(picked)


def measured(command, threads):
    found = measured_by([str(part) for part in command], threads)
    if isinstance(found, dict) and "error" in found:
        sys.exit(f"{command[0]}: {found['error']}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--burnish", type=Path, default=Path("target/release/burnish"))
    parser.add_argument("--node", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=64, help="words of the prompt, about a token each")
    parser.add_argument("--answer", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model, text = str(options.model.resolve()), text_of(options.prompt)
    sizes = [str(options.threads), str(2 * options.prompt), str(options.answer)]

    def burnish(seed):
        command = [options.burnish, "generate", "--base", model, "--raw", "--temperature", "0.7", "--seed", str(seed), "--threads", sizes[0]]
        command += ["--max-tokens", sizes[2], "--json", "--prompt", text]
        answer = measured(command, options.threads)
        return [answer["prompt_tokens_per_second"], answer["tokens_per_second"]]

    wheel = [sys.executable, "-c", WHEEL, model, *sizes, text]
    tools = {"burnish": burnish, "xllamacpp": lambda _: measured(wheel, options.threads)}
    if options.node:
        script = options.node / "answers.mjs"
        script.write_text(NODE)
        tools["node-llama-cpp"] = lambda _: measured(["node", script, model, *sizes, text], options.threads)
    speeds = {tool: [] for tool in tools}
    for seed in range(options.rounds):
        for tool, measure in tools.items():
            speeds[tool].append(measure(seed))
            print(tool, *(f"{speed:.0f}" for speed in speeds[tool][-1]), flush=True)
    medians = {tool: [statistics.median(column) for column in zip(*found)] for tool, found in speeds.items()}
    print("| tool | prompt, tokens/s | answer, tokens/s |\n|---|---|---|")
    for tool, (prompt, answer) in medians.items():
        print(f"| {tool} | {prompt:.0f} | {answer:.0f} |")
    best = [max(column) for column in zip(*(found for tool, found in medians.items() if tool != "burnish"))]
    print("ratio to the better of llama.cpp's: prompt {:.2f}, answer {:.2f}".format(*(own / other for own, other in zip(medians["burnish"], best))))


main()
