// A client that a test kills in the middle of a turn: an application as the SDK's users write it,
// in a process of its own. Its tool and its user never answer. It prints what it hears.
//
//   node victim.mjs ADDRESS PARAMS PROMPT     (PARAMS: JSON of session.create)

import { CopilotClient, RuntimeConnection, approveAll, defineTool } from "@github/copilot-sdk";

const [address, params, prompt] = process.argv.slice(2);
const never = () => new Promise(() => setInterval(() => undefined, 1_000));
const client = new CopilotClient({ connection: RuntimeConnection.forUri(address) });
await client.start();
const session = await client.createSession({
  ...JSON.parse(params),
  onPermissionRequest: approveAll,
  onUserInputRequest: () => {
    console.log("asked");
    return never();
  },
  tools: [defineTool("probe", {
    description: "Never answers here", parameters: { type: "object", properties: {} },
    skipPermission: true, handler: () => {
      console.log("called");
      return never();
    },
  })],
});
await session.sendAndWait({ prompt: "before" });
console.log("ready");
session.on(({ type }) => console.log(type));
await session.send({ prompt });
