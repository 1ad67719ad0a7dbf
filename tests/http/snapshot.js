// Returns the page as it stands as an SVG picture: boxes, texts and drawn lines, without fonts and scripts.
(() => {
  const out = [];
  const round = (number) => Math.round(number * 10) / 10;
  const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/"/g, "&quot;");
  const element = (tag, attributes, text) => {
    const pairs = Object.entries(attributes).filter(([, value]) => value !== undefined);
    const list = pairs.map(([name, value]) => ` ${name}="${typeof value === "number" ? round(value) : escape(value)}"`);
    out.push(text === undefined ? `<${tag}${list.join("")}/>` : `<${tag}${list.join("")}>${escape(text)}</${tag}>`);
  };
  const seen = (colour) => !["transparent", "rgba(0, 0, 0, 0)", "none"].includes(colour);
  const words = (text, x, y, style, anchor) =>
    element("text", {
      x, y, fill: style.color, "font-size": parseFloat(style.fontSize), "text-anchor": anchor,
      "font-weight": +style.fontWeight > 500 ? "bold" : undefined,
      "font-family": style.fontFamily.includes("mono") ? "monospace" : undefined,
    }, text);

  function box(node, style, at) {
    const radius = Math.min(parseFloat(style.borderTopLeftRadius) || 0, at.height / 2);
    const border = parseFloat(style.borderTopWidth) || 0;
    const inset = border / 2;
    const fill = seen(style.backgroundColor) ? style.backgroundColor : "none";
    const framed = border > 0 && style.borderTopStyle !== "none" && seen(style.borderTopColor);
    if (fill === "none" && !framed) return;
    if (border > 0 && parseFloat(style.borderLeftWidth) === 0) {
      element("line", { x1: at.left, y1: at.top, x2: at.right, y2: at.top, stroke: style.borderTopColor });
      return;
    }
    element("rect", {
      x: at.left + inset, y: at.top + inset, width: at.width - border, height: at.height - border,
      rx: radius || undefined, fill, stroke: framed ? style.borderTopColor : undefined,
      "stroke-width": framed && border !== 1 ? border : undefined,
      "stroke-dasharray": framed && style.borderTopStyle === "dashed" ? "3 3" : undefined,
    });
  }

  /** One text for each line that the browser made. */
  function text(node, style) {
    const range = document.createRange();
    const lines = [];
    for (const { index, 0: part } of node.data.matchAll(/\S+/g)) {
      range.setStart(node, index);
      range.setEnd(node, index + part.length);
      // A word that is broken over lines goes letter by letter.
      const whole = range.getClientRects().length === 1;
      const pieces = whole ? [[index, part]] : [...part].map((letter, place) => [index + place, letter]);
      pieces.forEach(([start, piece], place) => {
        range.setStart(node, start);
        range.setEnd(node, start + piece.length);
        const at = range.getBoundingClientRect();
        const line = lines.at(-1);
        if (line && Math.abs(line.at.top - at.top) < 3) line.text += (place === 0 ? " " : "") + piece;
        else lines.push({ at, text: piece });
      });
    }
    for (const { at, text } of lines) words(text, at.left, at.top + at.height * 0.77, style);
  }

  function sign(node, at) {
    const style = getComputedStyle(node, "::before");
    const content = style.content.replace(/^"|"$/g, "").trim();
    if (!content || content === "none" || content === "normal" || style.position === "absolute") return;
    const padding = parseFloat(getComputedStyle(node).paddingLeft) || 0;
    const size = parseFloat(style.fontSize);
    const line = parseFloat(style.lineHeight) || size * 1.5;
    const top = at.top + (parseFloat(getComputedStyle(node).paddingTop) || 0);
    words(content, at.left + padding, top + line / 2 + size * 0.36, style);
  }

  /** Makes a chart draw once more, on a pen that writes SVG. */
  function drawing(canvas, at) {
    const real = canvas.getContext("2d");
    const [dx, dy] = [at.left, at.top];
    let [points, dash, alpha, saved] = ["", [], 1, []];
    const pen = {
      strokeStyle: "#000", fillStyle: "#000", lineWidth: 1, textAlign: "left", textBaseline: "alphabetic", font: "",
      setTransform() {}, clearRect() {}, clip() {}, strokeText() {},
      measureText(text) {
        real.font = this.font;
        return real.measureText(text);
      },
      setLineDash: (list) => (dash = list),
      save() { saved.push([this.strokeStyle, this.fillStyle, this.lineWidth, this.globalAlpha]); },
      restore() { [this.strokeStyle, this.fillStyle, this.lineWidth, this.globalAlpha] = saved.pop(); },
      get globalAlpha() { return alpha; },
      set globalAlpha(value) { alpha = value; },
      beginPath: () => (points = ""),
      rect() {},
      moveTo: (x, y) => (points += `M${round(x + dx)} ${round(y + dy)}`),
      lineTo: (x, y) => (points += `L${round(x + dx)} ${round(y + dy)}`),
      stroke() {
        element("path", {
          d: points, fill: "none", stroke: this.strokeStyle, "stroke-width": this.lineWidth === 1 ? undefined : this.lineWidth,
          "stroke-dasharray": dash.length ? dash.join(" ") : undefined,
        });
      },
      fill() { element("path", { d: points, fill: this.fillStyle, "fill-opacity": alpha === 1 ? undefined : String(alpha) }); },
      fillText(text, x, y) {
        const down = { middle: 4, bottom: -2 }[this.textBaseline] ?? 0;
        const anchor = { right: "end", center: "middle" }[this.textAlign];
        words(text, x + dx, y + dy + down, { color: this.fillStyle, fontSize: "12px", fontFamily: "", fontWeight: "400" }, anchor);
      },
    };
    canvas.getContext = () => pen;
    canvas.dispatchEvent(new PointerEvent("pointerleave"));
    delete canvas.getContext;
  }

  function shape(svg) {
    const at = svg.getBoundingClientRect();
    const [, , width] = (svg.getAttribute("viewBox") ?? "0 0 1 1").split(" ");
    out.push(`<g transform="translate(${round(at.left)} ${round(at.top)}) scale(${round(at.width / width)})">`);
    for (const part of svg.querySelectorAll("path, circle")) {
      const style = getComputedStyle(part);
      if (style.display === "none") continue;
      const own = ["d", "cx", "cy", "r"].map((name) => [name, part.getAttribute(name) ?? undefined]);
      element(part.tagName, {
        ...Object.fromEntries(own), fill: style.fill, stroke: style.stroke, "stroke-width": parseFloat(style.strokeWidth),
        "stroke-opacity": style.opacity === "1" ? undefined : style.opacity,
        "stroke-dasharray": style.strokeDasharray === "none" ? undefined : style.strokeDasharray.replaceAll("px", ""),
        "stroke-linecap": style.strokeLinecap === "butt" ? undefined : style.strokeLinecap,
      });
    }
    out.push("</g>");
  }

  function walk(node, bottom) {
    const style = getComputedStyle(node);
    const at = node.getBoundingClientRect();
    if (!node.checkVisibility() || at.right <= 0 || at.width * at.height === 0) return;
    // Below the edge of a list that scrolls.
    if (at.top + 8 > bottom) return;
    const edge = style.overflowY === "auto" ? Math.min(bottom, at.bottom) : bottom;
    if (node.tagName === "svg") return shape(node);
    box(node, style, at);
    if (node.tagName === "CANVAS") return drawing(node, at);
    sign(node, at);
    if (["INPUT", "SELECT"].includes(node.tagName)) return;
    for (const child of node.childNodes) {
      if (child.nodeType === Node.TEXT_NODE) text(child, style);
      else if (child.nodeType === Node.ELEMENT_NODE) walk(child, edge);
    }
  }

  scrollTo(0, 0);
  walk(document.body, Infinity);
  const [width, height] = [document.documentElement.clientWidth, document.documentElement.scrollHeight];
  const paper = getComputedStyle(document.documentElement).backgroundColor;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif">\n` +
    `<rect width="100%" height="100%" fill="${paper}"/>\n${out.join("\n")}\n</svg>\n`;
})()
