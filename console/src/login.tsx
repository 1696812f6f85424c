import { useEffect, useRef, useState } from "preact/hooks";

interface Props {
  problem: string;
  onToken: (token: string) => void;
}

// Others can't be sent in a header, or are lost on the way.
const POSSIBLE = /^[A-Za-z0-9._-]+$/;
const IMPOSSIBLE = "A token has letters, digits, points, - and _ only, and none of other alphabets.";

export function Login({ problem, onToken }: Props) {
  const [token, setToken] = useState("");
  const [isImpossible, setImpossible] = useState(false);
  const shown = isImpossible ? IMPOSSIBLE : problem;
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => field.current?.focus(), []);
  return (
    <main class="login">
      <form
        class="card"
        onSubmit={(event) => {
          event.preventDefault();
          if (POSSIBLE.test(token.trim())) onToken(token);
          else setImpossible(true);
        }}
      >
        <h1>Preceptor console</h1>
        <label for="token">Your team's token</label>
        <input
          ref={field}
          id="token"
          type="password"
          autocomplete="off"
          spellcheck={false}
          required
          value={token}
          aria-describedby="token-note"
          aria-invalid={shown !== ""}
          onInput={(event) => {
            setToken(event.currentTarget.value);
            setImpossible(false);
          }}
        />
        <p class="problem" role="alert">
          {shown}
        </p>
        <button type="submit">Show</button>
        <p id="token-note" class="hint">
          The one that students show, <code>NAME.SECRET</code>. This tab keeps it until it is closed, and sends it to
          this service only. You see your own team; operators see all.
        </p>
      </form>
    </main>
  );
}
