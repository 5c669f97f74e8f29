// Sends one picture to POST /api/verify and shows the answer. Text is only ever set as text, never as markup.

const STATES = {
  trusted: ["Trusted", "The signer is known here, and nothing was changed since it was signed."],
  valid: ["Valid, signer not known here", "Nothing was changed since it was signed, but this server does not know who vouches for the signer."],
  tampered: ["Changed after signing", "The pixels or the credentials are not those that were signed."],
  invalid: ["Signature does not count", "The credentials are there, but their signature breaks a rule: an expired certificate, for example."],
  unsigned: ["No credentials", "The picture does not say where it comes from."],
  unreadable: ["Not readable", "This is no picture that can be checked here, or it is damaged."],
};
const CAUTION = {
  trusted: "This server signs with a development certificate: it is trusted here only, and nowhere else.",
  valid: "What follows is what the signer says. Believe it as far as you know the signer.",
  tampered: "What follows was said before the change. Don’t rely on it.",
  invalid: "What follows is not vouched for by anybody. Don’t rely on it.",
};
const ACTIONS = {
  "c2pa.created": "Created", "c2pa.opened": "Started from another picture", "c2pa.placed": "Another picture placed into it",
  "c2pa.edited": "Edited", "c2pa.edited.metadata": "Metadata edited", "c2pa.converted": "Converted to another format",
  "c2pa.transcoded": "Encoded again", "c2pa.watermarked": "Invisible mark added", "c2pa.watermarked.bound": "Invisible mark added",
  "c2pa.watermarked.unbound": "Invisible mark added", "c2pa.resized": "Resized", "c2pa.cropped": "Cropped",
  "c2pa.color_adjustments": "Colours adjusted", "c2pa.filtered": "Filtered", "c2pa.drawing": "Drawn on", "c2pa.published": "Published",
  "c2pa.orientation": "Turned", "c2pa.redacted": "Partly redacted", "c2pa.removed": "Something removed",
};
const BY = {
  pixel_mark: () => "by the invisible mark in its pixels",
  image_code: (match) => `by its likeness${match.distance === null || match.distance === undefined ? "" : ` (${match.distance} of 64 bits of the image code differ)`}`,
  manifest: () => "by the label of its credentials",
};
const CLAIMS = { title: "Title", author: "Author", description: "Description", organization: "Organization", vendor: "Vendor" };

const $ = (id) => document.getElementById(id);
const mostBytes = Number(document.body.dataset.mostBytes);
const megabytes = (bytes) => (bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
let running, shown, last;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

function symbol(name) {
  const drawn = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  drawn.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#mark-${name}`);
  drawn.append(use);
  return drawn;
}

function time(text) {
  const date = new Date(text);
  if (Number.isNaN(date.getTime())) return text;
  const words = date.toLocaleString("en-GB", { dateStyle: "long", timeStyle: "short", timeZone: "UTC" });
  return element("time", { dateTime: date.toISOString(), textContent: `${words} UTC` });
}

function fact(term, ...description) {
  return element("div", {}, element("dt", { textContent: term }), element("dd", {}, ...description));
}

const small = (text) => element("small", { textContent: text });

function factsOf(answer) {
  const { signer, actions = [] } = answer;
  const facts = [];
  if (signer) facts.push(fact("Signed by", signer.name || "unnamed", signer.issuer && small(`certificate issued by ${signer.issuer}`)));
  if (answer.time) facts.push(fact("When", time(answer.time), small("as the signer says it")));
  if (answer.generator) facts.push(fact("Made with", answer.generator));
  if (answer.model) facts.push(fact("Model", answer.model));
  if (answer.ai_generated !== null && answer.ai_generated !== undefined)
    facts.push(fact("Drawn by AI", answer.ai_generated ? "Yes" : "The credentials don’t say so"));
  if (answer.pixels_changed !== null && answer.pixels_changed !== undefined)
    facts.push(fact("Pixels", answer.pixels_changed ? "Changed since it was signed" : "Unchanged since it was signed"));
  else if (signer) facts.push(fact("Pixels", "Can’t be told"));
  if (actions.length)
    facts.push(fact("What was done", element("ol", {}, ...actions.map((one) =>
      element("li", {}, ACTIONS[one.action] ?? one.action, one.description && small(one.description))))));
  const same = answer.found?.find(isSame);
  if (same) facts.push(fact("On record", element("code", { textContent: same.id }), small("a picture of this service, to the last byte")));
  return facts;
}

const isSame = (match) => (match.by ?? []).includes("sha256");

function matchOf(match) {
  const created = match.created ? [", drawn on ", time(match.created)] : [];
  const model = match.model ? [` by the model “${match.model}”`] : [];
  const ways = new Intl.ListFormat("en-GB").format((match.by ?? []).map((way) => BY[way]?.(match) ?? way));
  return element("li", {},
    element("p", {}, "This looks like picture ", element("code", { textContent: match.id }), " of this service", ...created, ...model, "."),
    element("p", {}, `Found ${ways}${match.mirrored ? "; this copy is mirrored" : ""}.`));
}

function moreOf(answer) {
  const { claims, actions = [], failures = [], training } = answer;
  const parts = [];
  if (failures.length)
    parts.push(element("h3", { textContent: "What does not hold" }), element("ul", {}, ...failures.map((text) => element("li", { textContent: text }))));
  if (claims && Object.keys(claims).length)
    parts.push(element("h3", { textContent: "Claims" }), element("p", { className: "fine", textContent: "Claimed by whoever asked for the picture. The signer passes them on and has not checked them." }),
      element("dl", { className: "facts" }, ...Object.entries(claims).map(([name, value]) => fact(CLAIMS[name] ?? name, String(value)))));
  if (actions.length)
    parts.push(element("h3", { textContent: "Actions" }), element("ul", {}, ...actions.map((one) =>
      element("li", {}, element("code", { textContent: one.action }), one.when ? " at " : "", one.when && time(one.when)))));
  if (training)
    parts.push(element("h3", { textContent: "Training" }), element("pre", { tabIndex: 0, ariaLabel: "What the signer says about training", textContent: JSON.stringify(training, null, 2) }));
  return parts;
}

function show(answer) {
  const known = Object.hasOwn(STATES, answer.state) ? answer.state : "unreadable";
  const [title, meaning] = STATES[known];
  const found = (answer.found ?? []).filter((match) => !isSame(match));
  $("state").dataset.state = known;
  $("mark").setAttribute("href", `#mark-${known}`);
  $("verdict").textContent = title;
  // What it looks like stands below, and in more words than a summary has.
  $("summary").textContent = found.length ? meaning : answer.summary || meaning;
  $("found").hidden = found.length === 0;
  $("matches").replaceChildren(...found.map(matchOf));
  const caution = known === "trusted" && document.body.dataset.development !== "true" ? "" : CAUTION[known] ?? "";
  $("caution").textContent = caution;
  $("caution").hidden = !caution;
  $("facts").replaceChildren(...factsOf(answer));
  $("more").replaceChildren(...moreOf(answer));
  $("json").textContent = JSON.stringify(answer, null, 2);
  $("result").hidden = false;
  const again = found.length ? ` Found again: it looks like picture ${found[0].id}.` : "";
  say(`Checked. ${title}.${again}`);
  $("status").classList.add("unseen"); // The eyes have the result itself.
  $("drop").classList.add("done");
  $("state").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth", block: "nearest" });
}

function say(text, busy = false) {
  $("status").textContent = text;
  $("status").classList.toggle("busy", busy);
}

function complain(title, text, retry = false) {
  $("result").hidden = true;
  $("problem").hidden = false;
  $("problem-title").textContent = title;
  $("problem-text").textContent = text;
  $("again").hidden = !retry;
  say(`${title} ${text}`);
  $("status").classList.add("unseen");
}

async function explain(response) {
  const told = await response.json().catch(() => ({}));
  const fix = told.fix ?? "";
  const wait = Number(response.headers.get("retry-after"));
  if (response.status === 413) return ["This file is too large.", fix || `At most ${megabytes(mostBytes)} can be checked.`];
  if (response.status === 429) return ["Too many pictures in a short time.", wait ? `Try again in ${wait} ${wait === 1 ? "second" : "seconds"}.` : "Wait a moment, then try again.", true];
  if (response.status >= 500) return ["The server can’t check pictures just now.", `This has nothing to do with your picture. Try again in a moment.${told.request_id ? ` Should it stay so, tell the operator this id: ${told.request_id}` : ""}`, true];
  return ["This file can’t be checked.", [told.error && `${told.error}.`, fix].filter(Boolean).join(" ") || "Choose a JPEG, PNG, WebP or AVIF picture."];
}

async function check(file) {
  running?.abort();
  const mine = (running = new AbortController());
  last = file;
  $("problem").hidden = true;
  $("result").hidden = true;
  $("status").classList.remove("unseen");
  if (file.size > mostBytes) return complain("This file is too large.", `It has ${megabytes(file.size)}; at most ${megabytes(mostBytes)} can be checked.`);
  if (file.size === 0) return complain("This file is empty.", "Choose another one.");
  say(`Checking ${file.name || "the picture"} …`, true);
  present(file);
  try {
    // The type says only that these are the bytes of a picture; which kind, the server finds out by itself.
    const type = file.type.startsWith("image/") ? file.type : "image/jpeg";
    const response = await fetch("/api/verify", { method: "POST", headers: { "content-type": type }, body: file, signal: mine.signal });
    if (!response.ok) return complain(...(await explain(response)));
    show(await response.json());
  } catch (error) {
    if (mine.signal.aborted) return;
    if (error instanceof SyntaxError) return complain("The answer can’t be read.", "Something between you and the server gets in the way. Try again.", true);
    complain(navigator.onLine ? "The server can’t be reached." : "You are offline.", "Check your connection, then try again.", true);
  }
}

function present(file) {
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(file);
  $("picture").hidden = false;
  $("no-picture").hidden = true;
  $("picture").src = shown;
  $("caption").textContent = [file.name, megabytes(file.size)].filter(Boolean).join(" · ");
}

function take(transfer, nothing) {
  const files = [...(transfer?.files ?? [])];
  const file = files.find((one) => one.type.startsWith("image/")) ?? files[0];
  if (file) check(file);
  else complain("There is no picture in this.", nothing);
}

$("picture").addEventListener("error", () => {
  $("picture").hidden = true;
  $("no-picture").hidden = false;
});
$("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) check(file);
  event.target.value = ""; // So that the same file can be chosen again.
});
$("again").addEventListener("click", () => check(last));
$("drop").addEventListener("submit", (event) => event.preventDefault());
for (const kind of ["dragenter", "dragover"])
  addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  take(event.dataTransfer, "Save the picture to your device first, then drop the file.");
});
addEventListener("paste", (event) => take(event.clipboardData, "Copy a picture or a file first, then paste."));

$("limit").textContent = `, up to ${megabytes(mostBytes)}`;
for (const [name, [title, meaning]] of Object.entries(STATES)) {
  const term = element("dt", {}, symbol(name), title);
  term.dataset.state = name;
  $("legend").append(element("div", {}, term, element("dd", { textContent: meaning })));
}
