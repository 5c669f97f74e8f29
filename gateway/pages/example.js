// On a site of your own: the address of your gateway, which names your site's origin in IMGEN_CORS_ORIGINS.
const GATEWAY = "";
const WORDS = {
  trusted: "Signed, and unchanged", valid: "Signed by somebody not known here", tampered: "Changed after signing",
  invalid: "Signature does not count", unsigned: "No content credentials", unreadable: "Not readable",
};
const $ = (id) => document.getElementById(id);
const sleep = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));
const when = (time) => `${new Date(time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short", timeZone: "UTC" })} UTC`;

async function call(path, options) {
  const response = await fetch(path, options).catch(() => { throw new Error("The gateway can’t be reached."); });
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Error([told.error ?? `HTTP ${response.status}`, told.fix].filter(Boolean).join(". "));
}

const api = async (key, body) => (await call(`${GATEWAY}/api/v2`, {
  method: "POST", headers: { authorization: `Bearer ${key}`, "content-type": "application/json" }, body: JSON.stringify(body),
})).json();

/** Asks for a picture, or for one that is there, until it is ready: its entry in meta.images, with a fresh signed URL. */
async function ready(key, asked) {
  const id = /^run_[\w-]+$/.test(asked) ? asked : (await api(key, { action: "generate", prompt: asked })).id;
  for (;;) {
    const answer = await api(key, { action: "status", id });
    if (answer.status === "COMPLETED" && answer.meta) return answer.meta.images.find((image) => image.type === "signed");
    if (!["IN_QUEUE", "IN_PROGRESS"].includes(answer.status)) throw new Error(answer.error ?? answer.status);
    const { step, total_steps: steps } = answer.progress ?? {};
    $("status").textContent = steps ? `Drawing, step ${step} of ${steps} …` : "Waiting …";
    await sleep(1);
  }
}

/** Shows the very bytes that were verified: an <img> with the URL would load them a second time. */
async function show(url, description) {
  const picture = await (await call(url)).blob();
  const found = await (await call(`${GATEWAY}/api/verify`, { method: "POST", headers: { "content-type": picture.type }, body: picture })).json();
  URL.revokeObjectURL($("picture").src);
  $("picture").src = URL.createObjectURL(picture);
  $("picture").alt = description;
  $("state").textContent = WORDS[found.state] ?? found.state;
  const facts = { "Signed by": found.signer?.name, "Drawn by AI": found.ai_generated ? "Yes" : "Not said", Model: found.model, Time: found.time && when(found.time) };
  $("facts").replaceChildren(...Object.entries(facts).filter(([, text]) => text).flatMap(([name, text]) =>
    [["dt", name], ["dd", text]].map(([tag, textContent]) => Object.assign(document.createElement(tag), { textContent }))));
  $("figure").hidden = false;
}

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.submitter ?? $("ask").querySelector("button");
  button.disabled = true;
  $("figure").hidden = true;
  $("status").textContent = "Asking …";
  try {
    const asked = $("prompt").value.trim();
    const image = await ready($("key").value.trim(), asked);
    await show(image.url, asked.startsWith("run_") ? "A generated picture" : `A generated picture: ${asked}`);
    $("status").textContent = `Here it is. Its credentials: ${$("state").textContent}.`;
  } catch (error) {
    $("status").textContent = error.message;
  } finally {
    button.disabled = false;
  }
});
$("pin").addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  $("pin").open = false;
  $("pin").querySelector("summary").focus();
});
