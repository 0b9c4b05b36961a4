// Boxes on a canvas, and the two things that leave the page: COCO JSON and the drawn image.

// Okabe and Ito's colours: they differ for colour-blind people, too.
const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"];

export const colourOf = (label) => COLOURS[label % COLOURS.length];

export const shown = (detections, threshold, hidden) =>
  detections.filter((one) => one.score >= threshold && !hidden.has(one.label));

export function draw(canvas, image, detections) {
  canvas.width = image.width;
  canvas.height = image.height;
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  const unit = Math.max(1, Math.max(image.width, image.height) / 640);
  pen.lineWidth = 2 * unit;
  pen.font = `600 ${Math.round(13 * unit)}px system-ui, sans-serif`;
  pen.textBaseline = "top";
  for (const { box: [x1, y1, x2, y2], name, score, label } of [...detections].reverse()) {
    const text = `${name} ${score.toFixed(2)}`;
    const width = pen.measureText(text).width + 8 * unit, height = 18 * unit;
    const left = Math.max(0, Math.min(x1, image.width - width));
    const top = y1 >= height ? y1 - height : Math.min(y1, image.height - height);
    pen.strokeStyle = pen.fillStyle = colourOf(label);
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
    pen.fillRect(left, top, width, height);
    pen.fillStyle = "#000";
    pen.fillText(text, left + 4 * unit, top + 3 * unit);
  }
}

export const cocoJson = (detections, imageId) =>
  JSON.stringify(detections.map(({ box: [x1, y1, x2, y2], score, category_id }) =>
    ({ image_id: imageId, category_id, bbox: [x1, y1, x2 - x1, y2 - y1], score })));
