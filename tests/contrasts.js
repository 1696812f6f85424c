(() => {
  const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each !== null; each = each.parentElement) {
      const [r, g, b, alpha = 1] = channels(getComputedStyle(each).backgroundColor);
      if (alpha === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const hasText = (element) =>
    [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim() !== "");
  return [...document.body.querySelectorAll("*")].filter(hasText).map((element) => {
    const tones = [luminance(channels(getComputedStyle(element).color).slice(0, 3)), luminance(behind(element))];
    const ratio = (Math.max(...tones) + 0.05) / (Math.min(...tones) + 0.05);
    return { text: element.textContent.trim().slice(0, 40), ratio };
  });
})()
