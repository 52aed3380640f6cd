// Pages of runs in a real Chromium, opened from the disk: no error, no request, axe's rules of accessibility, the numbers of
// metrics.jsonl on the charts' tables, reading off and zooming with the keyboard, narrow, dark and printed.
//
//     npm install playwright-core axe-core && CHROMIUM=$(command -v chromium) node report.mjs PICTURES RUN… [-- PAGE…] [-- http://127.0.0.1:8081/]
//
// RUN is a run folder with its report.html, PAGE a page of several runs, of a sweep or of attention; the address is that of a running `burnish ui`. Exits
// with 1 where something fails. Hostile runs are welcome.

import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [pictures, ...rest] = process.argv.slice(2);
const parts = rest.join("\n").split("\n--\n").map((part) => part.split("\n"));
const runs = parts[0];
const others = parts.slice(1).flat().filter((one) => !one.startsWith("http:"));
const addresses = parts.slice(1).flat().filter((one) => one.startsWith("http:"));
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
let failures = 0;
const check = (name, holds, found) => {
  console.log((holds ? "ok     " : "FAILED ") + name, holds ? "" : found);
  failures += holds ? 0 : 1;
};
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });

async function open(address, options) {
  const page = await browser.newPage(options);
  page.problems = [];
  page.foreign = [];
  page.on("console", (message) => { if (message.type() === "error") page.problems.push(message.text()); });
  page.on("pageerror", (error) => page.problems.push(error.message));
  page.on("dialog", (dialog) => { page.problems.push("dialog: " + dialog.message()); dialog.dismiss(); });
  page.on("request", (request) => { if (!request.url().startsWith(address) && !request.url().startsWith("data:")) page.foreign.push(request.url()); });
  await page.goto(address);
  await page.waitForSelector("main h1");
  return page;
}

async function serious(page) {
  // The policy of the page lets no other script in by an element.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => axe.run(document));
  return violations.filter((one) => ["serious", "critical"].includes(one.impact)).map((one) => `${one.id}: ${one.nodes[0].html.slice(0, 200)} ${one.nodes[0].failureSummary}`);
}

async function sound(name, page) {
  const found = await serious(page);
  check(`${name}: axe finds nothing serious`, found.length === 0, found);
  check(`${name}: no request, no error`, page.foreign.length + page.problems.length === 0, [page.foreign, page.problems]);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  check(`${name}: nothing is wider than the screen`, wide <= 0, wide);
}

/// Unfolds everything.
const unfold = (page) => page.evaluate(() => { document.querySelectorAll("main details").forEach((one) => { one.open = true; }); });

for (const run of runs) {
  const address = pathToFileURL(resolve(run, "report.html")).href;
  const name = basename(resolve(run));
  const lines = existsSync(join(run, "metrics.jsonl")) ? readFileSync(join(run, "metrics.jsonl"), "utf8").split("\n").flatMap((line) => { try { return [JSON.parse(line)]; } catch { return []; } }) : [];
  for (const scheme of ["light", "dark"]) {
    const page = await open(address, { viewport: { width: 1280, height: 900 }, colorScheme: scheme });
    await page.screenshot({ path: `${pictures}/${name}-${scheme}.png`, fullPage: true });
    await sound(`${name}, ${scheme}`, page);
    if (scheme === "light") {
      const data = await page.evaluate(() => JSON.parse(document.getElementById("island").textContent).runs[0].metrics);
      check(`${name}: the data is metrics.jsonl`, JSON.stringify(data) === JSON.stringify(lines), "differs");
      const losses = lines.filter((line) => "learning_rate" in line && typeof line.loss === "number");
      if (losses.length) {
        await page.focus("#curves .plot");
        await page.keyboard.press("Home");
        await page.keyboard.press("+");
        check(`${name}: zoomed by the keyboard`, await page.isVisible("#curves .reset"), "no button");
        await page.keyboard.press("0");
        await unfold(page);
        const shown = await page.$$eval("#curves figure:first-child tbody tr", (rows) => Object.fromEntries(rows.map((row) => [...row.cells].map((cell) => cell.textContent)).map(([step, loss]) => [step.replaceAll(",", ""), loss])));
        const wrong = losses.filter((line) => Number(shown[line.step]?.replaceAll(",", "")) !== Number(line.loss.toPrecision(4)));
        check(`${name}: the table of the chart has the losses`, wrong.length === 0, wrong.slice(0, 3));
        await sound(`${name}, unfolded`, page);
      }
    }
    await page.close();
  }
  const narrow = await open(address, { viewport: { width: 360, height: 740 } });
  await narrow.screenshot({ path: `${pictures}/${name}-narrow.png`, fullPage: true });
  await sound(`${name}, narrow`, narrow);
  await narrow.emulateMedia({ media: "print" });
  await narrow.pdf({ path: `${pictures}/${name}.pdf` });
  await narrow.close();
}

for (const path of others) {
  const name = basename(path, ".html");
  for (const scheme of ["light", "dark"]) {
    const page = await open(pathToFileURL(resolve(path)).href, { viewport: { width: 1280, height: 900 }, colorScheme: scheme });
    await page.screenshot({ path: `${pictures}/${name}-${scheme}.png`, fullPage: true });
    await sound(`${name}, ${scheme}`, page);
    await page.close();
  }
}

for (const address of addresses) {
  const page = await open(address, { viewport: { width: 1280, height: 900 } });
  await page.waitForSelector("#live input");
  await page.evaluate(() => document.querySelectorAll("#live input:not(:checked)")[0]?.click());
  await page.waitForFunction(() => document.querySelectorAll("main section").length > 0);
  await page.waitForTimeout(1500);
  await page.screenshot({ path: `${pictures}/live.png`, fullPage: true });
  await sound("live", page);
  await page.reload();
  await page.waitForSelector("main section");
  check("live: what was chosen stays", (await page.$$("#live input:checked")).length > 0, page.url());
  await page.close();
}
await browser.close();
process.exit(failures ? 1 : 0);
