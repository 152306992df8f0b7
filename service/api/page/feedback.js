// Two buttons below a result, for whoever has looked at the part.

import { sendFeedback, wordsOf } from "./teaching-api.js";
import { element } from "./view.js";

const WORDS = { good: "That was good", defect: "Really a defect" };

/** The buttons; `item` keeps what was said, so that they show it again. */
export function feedbackView(item) {
  const { result } = item;
  const note = element("p", { class: "quiet", role: "status" }, item.told?.words ?? "");
  const buttons = Object.entries(WORDS).map(([verdict, words]) => element("button", {
    type: "button", class: "button", "aria-pressed": String(item.told?.verdict === verdict), onclick: () => tell(verdict),
  }, words));

  async function tell(verdict) {
    for (const button of buttons) button.disabled = true;
    try {
      const kept = await sendFeedback(result.id, verdict, result.task?.name);
      item.told = { verdict, words: `Kept as ${verdict === "good" ? "good" : "defective"} for ${kept.task}.` };
    } catch (error) {
      item.told = { ...item.told, words: wordsOf(error) };
    }
    for (const button of buttons) button.disabled = false;
    Object.keys(WORDS).forEach((key, index) => {
      buttons[index].setAttribute("aria-pressed", String(item.told.verdict === key));
    });
    note.textContent = item.told.words;
  }

  return element("div", { class: "block" }, element("h3", {}, "What was it really?"),
    element("div", { class: "choices told" }, ...buttons), note);
}
