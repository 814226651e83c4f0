// The tour: one budget at a time, chosen by a slider. Without JavaScript all of them stand below each other.
document.addEventListener("DOMContentLoaded", () => {
  for (const tour of document.querySelectorAll(".tour")) {
    const parts = [...tour.querySelectorAll(".tour-part")];
    const label = document.createElement("label");
    const slider = Object.assign(document.createElement("input"), {
      type: "range",
      min: 0,
      max: parts.length - 1,
      value: 2,
    });
    const told = document.createElement("output");
    const show = () => {
      parts.forEach((part, number) => (part.hidden = number !== Number(slider.value)));
      const { tokens, of } = parts[slider.value].dataset;
      told.textContent = `${tokens} of ${of} tokens`;
      slider.setAttribute("aria-valuetext", told.textContent);
    };
    slider.addEventListener("input", show);
    label.append("budget ", slider, told);
    label.className = "tour-slider";
    tour.prepend(label);
    show();
  }
});
