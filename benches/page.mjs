// The page of a running `burnish serve` in a real Chromium: chat, side by side, a vote, a narrow screen, dark, no request to
// elsewhere, and axe's rules of accessibility.
//
//     npm install playwright-core axe-core && CHROMIUM=$(command -v chromium) node page.mjs http://127.0.0.1:8080/ PICTURES
//
// The server needs an adapter and `--votes`. With a PNG file as third argument, its base has to see pictures, and the page is asked about that
// picture instead. Exits with 1 where something fails.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const [address, pictures, shown] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
let failures = 0;
const check = (name, holds, found) => {
  console.log((holds ? "ok     " : "FAILED ") + name, holds ? "" : found);
  failures += holds ? 0 : 1;
};
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });

async function open(options) {
  const page = await browser.newPage(options);
  page.problems = [];
  page.foreign = [];
  page.on("console", (message) => { if (message.type() === "error") page.problems.push(message.text()); });
  page.on("pageerror", (error) => page.problems.push(error.message));
  page.on("request", (request) => { if (!request.url().startsWith(address) && !request.url().startsWith("data:")) page.foreign.push(request.url()); });
  await page.goto(address);
  await page.waitForFunction(() => /models?$/.test(document.getElementById("state").textContent));
  return page;
}

async function settled(page, cards) {
  await page.waitForFunction((cards) => document.querySelectorAll('.turn[aria-busy="false"]').length === cards, cards, { timeout: 60000 });
}

async function serious(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => axe.run(document));
  return violations.filter((one) => ["serious", "critical"].includes(one.impact)).map((one) => `${one.id}: ${one.nodes[0].html}`);
}

async function askAboutPictures() {
  const page = await open({ viewport: { width: 1200, height: 800 } });
  await page.fill("#length", "8");
  const pending = () => page.$$eval("#pending img", (all) => all.map((one) => [one.alt, one.naturalWidth > 0]));
  const name = shown.split("/").pop();
  await page.setInputFiles("#files", [shown, shown]);
  await page.waitForFunction(() => document.querySelectorAll("#pending img").length === 2);
  check("pictures: they wait with their names", (await pending()).every(([alt, isThere]) => alt === "Picture " + name && isThere), await pending());
  await page.focus("#pending li:last-child button");
  await page.keyboard.press("Enter");
  check("pictures: the keyboard removes one", (await pending()).length === 1 && await page.evaluate(() => document.activeElement.id === "prompt"), await pending());
  await page.evaluate((base64) => {
    const bytes = Uint8Array.from(atob(base64), (symbol) => symbol.charCodeAt(0));
    const clipboardData = new DataTransfer();
    clipboardData.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
    document.getElementById("prompt").dispatchEvent(new ClipboardEvent("paste", { clipboardData, cancelable: true, bubbles: true }));
  }, readFileSync(shown).toString("base64"));
  await page.waitForFunction(() => document.querySelectorAll("#pending img").length === 2);
  check("pictures: one is pasted", (await pending())[1][0] === "Picture pasted.png", await pending());
  await page.screenshot({ path: `${pictures}/pending.png` });
  check("pictures: axe finds nothing serious while they wait", (await serious(page)).length === 0, await serious(page));
  await page.fill("#prompt", "Which colour is this?");
  await page.keyboard.press("Enter");
  await settled(page, 1);
  const asked = await page.$$eval(".turn.mine img", (all) => all.map((one) => one.alt));
  check("pictures: the conversation shows them", asked.length === 2 && (await pending()).length === 0, asked);
  const figures = await page.textContent(".figures");
  check("pictures: an answer with its figures", /\d tokens/.test(figures), figures);
  await page.fill("#prompt", "And which shape?");
  await page.keyboard.press("Enter");
  await settled(page, 2);
  const failed = await page.$$eval(".failed", (all) => all.map((one) => one.textContent));
  check("pictures: the conversation goes on", failed.length === 0, failed);
  await page.screenshot({ path: `${pictures}/shown.png` });
  check("pictures: axe finds nothing serious", (await serious(page)).length === 0, await serious(page));
  check("pictures: no request to elsewhere, no error", page.foreign.length + page.problems.length === 0, [page.foreign, page.problems]);
  await page.setViewportSize({ width: 360, height: 640 });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  check("pictures: nothing is wider than a small screen", wide <= 360, wide);
}

if (shown) {
  await askAboutPictures();
  await browser.close();
  process.exit(failures ? 1 : 0);
}
for (const scheme of ["light", "dark"]) {
  const page = await open({ viewport: { width: 1200, height: 800 }, colorScheme: scheme });
  await page.fill("#length", "60");
  await page.fill("#seed", "3");
  // The keyboard alone, from the field that has the focus at the start.
  await page.focus("#prompt");
  await page.keyboard.type("What is the capital of France?");
  await page.keyboard.press("Enter");
  await settled(page, 1);
  const figures = await page.textContent(".figures");
  check(`${scheme}: an answer with its figures`, /\d tokens/.test(figures), figures);
  await page.check("#compare");
  await page.keyboard.press("Escape");
  await page.focus("#prompt");
  await page.keyboard.type("Name three colours.");
  await page.keyboard.press("Enter");
  await settled(page, 3);
  const names = () => page.$$eval(".both .who", (all) => all.map((one) => one.textContent));
  check(`${scheme}: names are hidden`, (await names()).join() === "Left,Right", await names());
  check(`${scheme}: no picture for a base that sees none`, await page.isHidden("#attach"));
  await page.screenshot({ path: `${pictures}/${scheme}.png` });
  await page.keyboard.press("1");
  await page.waitForSelector("#votes:not(.hidden)");
  const row = await page.textContent("#votes tbody tr");
  check(`${scheme}: a vote counts`, /%/.test(row) && (await names()).join() !== "Left,Right", row);
  const found = await serious(page);
  check(`${scheme}: axe finds nothing serious`, found.length === 0, found);
  check(`${scheme}: no request to elsewhere, no error`, page.foreign.length + page.problems.length === 0, [page.foreign, page.problems]);
  await page.close();
}

const narrow = await open({ viewport: { width: 360, height: 640 } });
await narrow.fill("#prompt", "Hello");
await narrow.keyboard.press("Enter");
await settled(narrow, 1);
const wide = await narrow.evaluate(() => document.documentElement.scrollWidth);
check("narrow: nothing is wider than the screen", wide <= 360, wide);
check("narrow: axe finds nothing serious", (await serious(narrow)).length === 0, await serious(narrow));
await narrow.screenshot({ path: `${pictures}/narrow.png` });
await narrow.fill("#prompt", "Tell me a very long story.");
await narrow.keyboard.press("Enter");
await narrow.waitForFunction(() => document.querySelector('.turn[aria-busy="true"] .text')?.textContent.length > 5);
await narrow.keyboard.press("Escape");
await settled(narrow, 2);
check("Escape stops an answer", /stopped/.test(await narrow.textContent(".turn:last-child .figures")));
await browser.close();
process.exit(failures ? 1 : 0);
