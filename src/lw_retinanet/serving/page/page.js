import { cocoJson, colourOf, draw, shown } from "./canvas.js";

const part = (id) => document.getElementById(id);
const LOWEST = 0.05; // one request brings everything that the slider can show
const state = { model: null, file: null, bitmap: null, answers: {}, head: null, hidden: new Set(), token: "", turn: 0 };

function say(text, isBad = false) {
  part("status").textContent = text;
  part("status").classList.toggle("bad", isBad);
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(state.token && { authorization: `Bearer ${state.token}` }) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401 && (await askForToken())) return ask(path, options);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error.message);
  return body;
}

function askForToken() {
  const dialog = part("token-dialog");
  return new Promise((done) => {
    dialog.addEventListener("close", () => { state.token = part("token").value; done(Boolean(state.token)); }, { once: true });
    dialog.showModal();
  });
}

async function start() {
  for (;;) {
    try {
      state.model = await ask("model");
      break;
    } catch (error) {
      say(error.message, true);
      await new Promise((done) => setTimeout(done, 1000));
    }
  }
  const { name, image_size, classes, heads, head } = state.model;
  part("model").textContent = `${name}, ${classes.length} ${classes.length === 1 ? "class" : "classes"}, ${image_size} pixels`;
  part("threshold").value = state.model.score;
  if (state.model.best_score !== null) addBest(state.model.best_score.toFixed(2));
  state.head = head;
  addHeads(heads);
  addExamples();
  showThreshold();
  say("");
}

function addBest(score) {
  const mark = document.createElement("option");
  Object.assign(mark, { value: score, label: "best" });
  part("marks").append(mark);
  Object.assign(part("best"), { textContent: `Best on val: ${score}`, hidden: false });
  part("best").addEventListener("click", () => { part("threshold").value = score; showThreshold(); });
}

function addHeads(heads) {
  part("heads").hidden = false;
  for (const { name, ms, gmacs } of heads) {
    const label = document.createElement("label"), choice = document.createElement("input"), cost = document.createElement("small");
    Object.assign(choice, { type: "radio", name: "head", value: name, checked: name === state.head });
    choice.addEventListener("change", () => { state.head = name; detect(); });
    cost.textContent = `${ms.toFixed(1)} ms${gmacs === null ? "" : `, ${gmacs.toPrecision(3)} GMACs`}`;
    label.append(choice, name, cost);
    part("heads").append(label);
  }
}

function addExamples() {
  for (let number = 0; number < state.model.examples; number++) {
    const button = document.createElement("button"), image = document.createElement("img");
    Object.assign(image, { src: `examples/${number}.jpg`, alt: `Example ${number + 1}` });
    button.type = "button";
    button.append(image);
    button.addEventListener("click", async () => take(await (await fetch(image.src)).blob(), `example-${number + 1}.jpg`));
    part("examples").append(button);
  }
}

async function take(blob, name) {
  stopCamera();
  const turn = ++state.turn; // what is still asked says nothing any more
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    return say("This is no image that the browser can show.", true);
  }
  if (turn !== state.turn) return; // a newer image
  if (blob.size > state.model.max_bytes) return say(`The image is larger than the limit of ${state.model.max_bytes} bytes.`, true);
  Object.assign(state, { file: blob, name, bitmap, answers: {}, hidden: new Set() });
  part("hint").hidden = true;
  part("canvas").hidden = false;
  part("drop").classList.add("full");
  await detect();
}

async function detect() {
  const { file, head, name, answers } = state, turn = ++state.turn;
  if (!file) return;
  if (!answers[head]) {
    show();
    say(`Looking with the ${head} head`);
    try {
      const started = performance.now();
      const form = new FormData();
      form.append("image", file, name);
      const answer = await ask(`detect?score=${LOWEST}&head=${head}`, { method: "POST", body: form });
      answers[head] = { ...answer, ms: performance.now() - started };
    } catch (error) {
      if (turn === state.turn) say(error.message, true);
      return;
    }
  }
  if (file !== state.file || head !== state.head) return;
  addClasses();
  show();
  if (turn === state.turn) say(`Answered in ${Math.round(answers[head].ms)} ms by the ${head} head`);
}

const detections = () => (state.answers[state.head] ?? { detections: [] }).detections;
const visible = () => shown(detections(), Number(part("threshold").value), state.hidden);

function addClasses() {
  const labels = new Map(detections().map((one) => [one.label, one.name]));
  const box = part("classes");
  box.replaceChildren(box.querySelector("legend"));
  box.hidden = labels.size === 0;
  for (const [label, name] of [...labels].sort((a, b) => a[0] - b[0])) {
    const row = document.createElement("label"), choice = document.createElement("input"), count = document.createElement("small");
    Object.assign(choice, { type: "checkbox", checked: !state.hidden.has(label) });
    choice.addEventListener("change", () => { state.hidden[choice.checked ? "delete" : "add"](label); show(); });
    count.dataset.label = label;
    row.append(choice, swatch(label), name, count);
    box.append(row);
  }
}

function swatch(label) {
  const mark = document.createElement("span");
  mark.className = "swatch";
  mark.style.background = colourOf(label);
  return mark;
}

function show() {
  if (!state.bitmap) return;
  const found = visible();
  draw(part("canvas"), state.bitmap, found);
  const words = found.length === 0 ? "No detections" : `${found.length} ${found.length === 1 ? "detection" : "detections"}`;
  part("count").textContent = words;
  part("canvas").setAttribute("aria-label", `${state.name}: ${words}${found.length ? ", " : ""}${found.slice(0, 20).map((one) => one.name).join(", ")}`);
  part("list").replaceChildren(...found.map((one) => {
    const row = document.createElement("li"), score = document.createElement("small");
    score.textContent = `${one.score.toFixed(2)} at ${one.box.map(Math.round).join(" ")}`;
    row.append(swatch(one.label), one.name, score);
    return row;
  }));
  const all = detections(), threshold = Number(part("threshold").value);
  for (const count of part("classes").querySelectorAll("small")) {
    count.textContent = all.filter((one) => one.label === Number(count.dataset.label) && one.score >= threshold).length;
  }
  part("copy").disabled = part("download").disabled = !state.answers[state.head];
}

function showThreshold() {
  part("threshold-value").textContent = Number(part("threshold").value).toFixed(2);
  show();
}

function stopCamera() {
  for (const track of part("video").srcObject?.getTracks() ?? []) track.stop();
  part("video").srcObject = null;
  part("video").hidden = true;
  part("camera").textContent = "Camera";
}

async function useCamera() {
  const video = part("video");
  if (video.srcObject) {
    const still = document.createElement("canvas");
    Object.assign(still, { width: video.videoWidth, height: video.videoHeight });
    still.getContext("2d").drawImage(video, 0, 0);
    return still.toBlob((blob) => take(blob, "camera.jpg"), "image/jpeg", 0.92);
  }
  if (!navigator.mediaDevices) return say("The browser gives a page its camera over https or on localhost only.", true);
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    return say("There is no camera, or the page may not use it.", true);
  }
  part("canvas").hidden = part("hint").hidden = true;
  video.hidden = false;
  await video.play();
  part("camera").textContent = "Take picture";
}

async function copy() {
  try {
    await navigator.clipboard.writeText(cocoJson(visible(), state.name));
    say("Copied");
  } catch {
    say("The browser does not let the page copy.", true);
  }
}

function download() {
  part("canvas").toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${state.name.replace(/\.\w+$/, "")}-detections.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }, "image/png");
}

const isImage = (item) => item.type.startsWith("image/");
const takeFile = (file) => file && state.model && take(file, file.name || "pasted.png");
part("file").addEventListener("change", (event) => { takeFile(event.target.files[0]); event.target.value = ""; });
part("threshold").addEventListener("input", showThreshold);
part("camera").addEventListener("click", useCamera);
part("copy").addEventListener("click", copy);
part("download").addEventListener("click", download);
document.addEventListener("paste", (event) => takeFile([...event.clipboardData.files].find(isImage)));
document.addEventListener("dragover", (event) => { event.preventDefault(); part("drop").classList.add("over"); });
document.addEventListener("dragleave", () => part("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  part("drop").classList.remove("over");
  takeFile(event.dataTransfer.files[0]);
});
start();
