// What the page asks the server: the bodies of its requests.

const ALTERNATIVES = 5;

function content(picture, question) {
  if (!picture) return question;
  return [
    { type: "image_url", image_url: { url: picture.url } },
    { type: "text", text: question },
  ];
}

/**
 * The body of a chat.
 * `interventions` undefined: those of the model's profile, if it is one; []: none.
 */
export function chatBody({ model, picture, question, system, sampling, trace }, interventions) {
  const messages = [{ role: "user", content: content(picture, question) }];
  if (system) messages.unshift({ role: "system", content: system });
  return {
    model,
    messages,
    ...sampling,
    logprobs: true,
    top_logprobs: ALTERNATIVES,
    ...(interventions && { interventions }),
    ...(trace && { trace }),
  };
}

export function streamed(body) {
  return { ...body, stream: true, stream_options: { include_usage: true } };
}
